"""Groups: their members, their anchors, who joins; they do not depend on how prompts are batched."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext

import pytest
import torch

from helpers.agents import CONTEXT, call_format_of, group_of, settings, standard
from skillweave.methods.e3tir.group import Group
from skillweave.methods.e3tir.rollouts import Rollouts, expert_entropies, in_turn
from skillweave.methods.training.head import install_scoring_head
from skillweave.tools import EXPERT, POLICY, TOOL


@pytest.fixture(scope="module")
def model(base):
    model = copy.deepcopy(base.model)
    install_scoring_head(model)
    return model


@pytest.fixture(scope="module")
def exact(base):
    """The same model in float64."""
    return copy.deepcopy(base.model).double()


@pytest.fixture
def play(hops, traces, model):
    """A function that plays groups on the first prompts with these settings."""

    def groups(ids=None, *, step=0, name="warm-up", stage=None, known=None, context=CONTEXT, **changes) -> list[Group]:
        config = settings(**{"warm_up": {"n": 2, "m": 4}, **changes})
        rollouts = Rollouts(
            hops, call_format_of(hops), hops.task.split("train"), traces if known is None else known, config,
            stage or config.warm_up, name=name, context=context,
        )  # fmt: skip
        return rollouts.groups(ids or list(traces)[:4], model, nullcontext, step)

    return groups


def entropies(model, trace) -> torch.Tensor:
    """The entropy at each token of one trace: float64, from the whole distribution, without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([trace.prompt + trace.ids])).logits[0, len(trace.prompt) - 1 : -1]
    p = logits.softmax(-1)
    return -(p * p.log()).sum(-1)


def highest(entropy: torch.Tensor, trace, k: int, room: int) -> list[int]:
    """The k positions of highest entropy, found one after the other in plain Python."""
    left = {at: float(entropy[at]) for at in range(1, min(len(trace.ids), room)) if trace.writers[at] == EXPERT}
    chosen = []
    while left and len(chosen) < k:
        chosen.append(max(left, key=lambda at: left[at]))
        del left[chosen[-1]]
    return sorted(chosen)


def anchors(group: Group) -> list[int]:
    """The positions at which its branches begin."""
    return sorted({member.prefix for member in group.pool(True)})


def contents(groups: list[Group]) -> list:
    """Everything in the groups, for comparisons."""
    return [
        (group.entry.id, [(member.episode.ids, member.episode.writers, member.prefix, member.branch,
                           member.parts, member.joined, member.advantage) for member in group.members])
        for group in groups
    ]  # fmt: skip


# -- who is in a group ------------------------------------------------------------------------------------------------


def test_a_group_is_n_of_its_own_and_then_m_that_go_on_from_the_expert(play, traces):
    for group in play():
        trace = traces[group.entry.id]
        assert [member.branch for member in group.members] == [False] * 2 + [True] * 4
        assert (len(group.pool(False)), len(group.pool(True))) == (2, 4)
        for member in group.members:
            episode = member.episode
            assert episode.prompt == trace.prompt
            assert episode.ids[: member.prefix] == trace.ids[: member.prefix]
            assert episode.writers[: member.prefix] == trace.writers[: member.prefix]
            assert EXPERT not in episode.writers[member.prefix :]
            assert episode.writers[member.prefix] == POLICY
            assert (member.prefix > 0) == member.branch
        # As even as it goes, the earliest anchors first.
        cuts = [member.prefix for member in group.pool(True)]
        assert cuts == sorted(cuts)
        assert [cuts.count(anchor) for anchor in anchors(group)] == [2, 1, 1]


@pytest.mark.parametrize(("k", "max_tokens"), [(1, 70), (3, 70), (5, 30), (100, 20)])
def test_branches_begin_where_the_policy_is_least_sure(play, exact, traces, k, max_tokens):
    rollout = {"max_tokens": max_tokens}
    for group in play(expert={"k": k}, rollout=rollout, warm_up={"n": 1, "m": 60, "steps": 1}):
        trace = traces[group.entry.id]
        expected = highest(entropies(exact, trace), trace, k, max_tokens - 1)
        assert anchors(group) == expected
        assert all(trace.writers[at] == EXPERT for at in anchors(group))
        assert all(len(member.episode.ids) > member.prefix for member in group.pool(True))  # there was room


def test_the_entropies_are_those_of_the_whole_distribution(model, exact, traces):
    known = [*list(traces.values())[:3], dataclasses.replace(traces[next(iter(traces))], ids=[7, 8], writers=[2, 2])]
    for batch_size in (1, 3, 64):
        found = expert_entropies(model, known, 0, nullcontext, batch_size)
        for entropy, trace in zip(found, known, strict=True):
            torch.testing.assert_close(entropy.double(), entropies(exact, trace), rtol=1e-4, atol=1e-5)


def test_training_mode_is_given_back(play, model):
    for training in (True, False):
        model.train(training)
        play()
        assert model.training == training


def test_a_prompt_without_a_trace_has_no_branches(play, traces):
    first, second = list(traces)[:2]
    alone, both = play([first, second], known={second: traces[second]})
    assert [member.branch for member in alone.members] == [False] * 2
    assert len(both.members) == 6
    assert alone.members[0].episode.prompt == traces[first].prompt


def test_a_stage_without_m_has_no_branches_whoever_has_traces(play):
    for group in play(name="rl", stage=settings().rl):
        assert [member.branch for member in group.members] == [False] * 4


def test_scores_are_the_verifiers(play, traces):
    seen = set()
    for group in play(list(traces), warm_up={"n": 4, "m": 4}):
        for member in group.members:
            right = member.episode.answer is not None and member.episode.answer.lower() == group.entry.answer.lower()
            assert member.score == float(right)
            assert member.reward == pytest.approx(1.0 if right else -0.2 if member.parts["format"] else 0.0)
            seen.add(member.reward)
    assert len(seen) == 3  # else this shows little


def test_experts_are_asked_only_where_every_own_conversation_failed(play, traces):
    always = play(list(traces), warm_up={"n": 6, "m": 2})
    failed = play(list(traces), warm_up={"n": 6, "m": 2}, expert={"ask": "failed"})
    solved = [any(member.score == 1 for member in group.pool(False)) for group in always]
    assert set(solved) == {True, False}
    for before, group, succeeded in zip(always, failed, solved, strict=True):
        asked = contents([before]) == contents([group])
        assert asked or succeeded
        assert (group.pool(True) == []) == succeeded


def turn_starts(trace) -> list[int]:
    """The positions at which the expert's turns begin, without its first turn."""
    writers = trace.writers
    return [at for at in range(1, len(writers)) if writers[at] == EXPERT and writers[at - 1] == TOOL]


def test_branches_at_turns_begin_where_a_turn_does(play, traces):
    for group in play(expert={"branch": "turns", "k": 2}):
        starts = turn_starts(traces[group.entry.id])
        assert anchors(group) == starts[:2]
        assert len(starts) == 2


def test_an_annealed_prefix_moves_from_the_last_turn_to_the_second(play, traces):
    stage = settings(warm_up={"steps": 5, "n": 1, "m": 2}).warm_up
    for id in list(traces)[:2]:
        cuts = [
            anchors(group)
            for step in range(5)
            for group in play([id], stage=stage, step=step, expert={"branch": "annealed"})
        ]
        assert all(len(cut) == 1 for cut in cuts)
        assert cuts == sorted(cuts, reverse=True)
        assert [cuts[-1][0], cuts[0][0]] == turn_starts(traces[id])


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_only_the_uncertain_tokens_of_a_prefix_keep_their_gradient(play, exact, traces, share):
    for group in play(expert={"uncertain": share}):
        trace = traces[group.entry.id]
        entropy = entropies(exact, trace)
        for member in group.pool(True):
            own = [at for at in range(member.prefix) if trace.writers[at] == EXPERT]
            kept = sorted(own, key=lambda at: -entropy[at])[: -(-len(own) * round(10 * share) // 10)]
            assert list(member.silent) == [at for at in own if at not in kept]
        assert not any(member.silent for member in group.pool(False))


def test_own_branches_leave_own_conversations_after_a_result_of_a_tool(play):
    branched = 0
    for group in play(known={}, expert={"branch": "own", "filter": False}, warm_up={"n": 3, "m": 4}):
        own = [member.episode for member in group.pool(False)]
        for member in group.pool(True):
            cut, episode = member.prefix, member.episode
            assert any(one.ids[:cut] == episode.ids[:cut] and one.writers[:cut] == episode.writers[:cut] for one in own)
            assert (episode.writers[cut - 1], episode.writers[cut]) == (TOOL, POLICY)
            assert EXPERT not in episode.writers
            assert member.sampled == episode.writers[cut:].count(POLICY) < episode.writers.count(POLICY)
            branched += 1
    assert branched >= 8


# -- who joins, and what it is worth ----------------------------------------------------------------------------------


def test_the_expert_pool_joins_only_where_its_best_is_better(play, traces):
    groups = play(list(traces), rollout={"temperature": 1.5})
    seen = set()
    for group in groups:
        ours, experts = ([member.reward for member in group.pool(branch)] for branch in (False, True))
        joined = max(experts) > max(ours)
        assert [member.joined for member in group.members] == [True] * len(ours) + [joined] * len(experts)
        seen.add(joined)
    assert seen == {True, False}


OWN, BRANCHES = [("ppp", 0.0), ("ppp", 0.5)], [("eepp", 0.5), ("eepp", 0.0), ("eeep", -0.2)]
BETTER = [("eepp", 1.0), ("eepp", 0.0), ("eeep", -0.2)]


def advantages(group: Group) -> list[float]:
    return [member.advantage for member in group.members]


def test_a_pool_that_does_not_join_is_as_if_it_were_not_there():
    group = group_of("a", settings(), *OWN, *BRANCHES)
    assert advantages(group) == pytest.approx([*standard([0.0, 0.5]), 0, 0, 0])
    assert all(not any(member.loss_mask) for member in group.pool(True))
    assert all(all(member.loss_mask) for member in group.pool(False))


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("told", "filtered"), [(BETTER, True), (BRANCHES, False)])
def test_a_branch_is_compared_with_the_group_and_with_the_other_branches(lam, told, filtered):
    group = group_of("a", settings(expert={"lam": lam, "filter": filtered}), *OWN, *told)
    over_all = standard([reward for _, reward in (*OWN, *told)])
    over_tree = standard([reward for _, reward in told])
    expected = [*over_all[:2], *(lam * a + (1 - lam) * b for a, b in zip(over_all[2:], over_tree, strict=True))]
    assert advantages(group) == pytest.approx(expected, rel=1e-5)
    assert all(member.joined for member in group.members)


def test_without_branches_the_advantages_are_those_of_grpo():
    group = group_of("a", settings(), ("p", 1.0), ("pp", 0.0), ("p", 0.0))
    assert advantages(group) == pytest.approx(standard([1.0, 0.0, 0.0]))
    assert advantages(group_of("a", settings(), ("p", 0.3), ("pp", 0.3))) == [0.0, 0.0]


def test_tool_tokens_are_in_no_mask():
    group = group_of("a", settings(), ("pptttp", 0.0), ("etteettpptp", 1.0))
    own, branch = group.members
    assert own.loss_mask == [1, 1, 0, 0, 0, 1]
    assert not any(own.prefix_mask)
    assert branch.loss_mask == [1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    assert branch.prefix_mask == [bool(bit) for bit in (1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0)]
    branch.joined = False
    assert not any(branch.loss_mask)


def test_played_conversations_have_the_masks_of_their_writers(play):
    for group in play():
        for member in group.members:
            for at, writer in enumerate(member.episode.writers):
                assert member.loss_mask[at] == (member.joined and writer in (POLICY, EXPERT))
                assert member.prefix_mask[at] == (at < member.prefix and writer == EXPERT)
            assert TOOL in member.episode.writers or member.episode.calls == 0 or member.episode.ended == "length"


# -- the other readings -----------------------------------------------------------------------------------------------


def test_whole_puts_the_trace_itself_into_the_group(play, traces):
    for group in play(expert={"branch": "whole"}):
        trace = traces[group.entry.id]
        assert len(group.pool(True)) == 4
        for member in group.pool(True):
            assert (member.episode.ids, member.episode.writers) == (trace.ids, trace.writers)
            assert (member.prefix, member.score, member.reward) == (len(trace.ids), 1.0, 1.0)
            assert sum(member.prefix_mask) == trace.expert_tokens
        assert group.members[2].joined == (max(member.reward for member in group.pool(False)) < 1)
        assert POLICY not in group.members[2].episode.writers


def test_random_positions_are_the_experts_and_others_at_each_step(play, traces):
    steps = [play(expert={"branch": "random"}, step=step) for step in (0, 1)]
    for groups in steps:
        for group in groups:
            assert len(anchors(group)) == 3
            assert all(traces[group.entry.id].eligible[at] for at in anchors(group))
    assert [anchors(group) for group in steps[0]] != [anchors(group) for group in steps[1]]
    assert [anchors(group) for group in steps[0]] == [anchors(group) for group in play(expert={"branch": "random"})]
    assert len({tuple(anchors(group)) for groups in steps for group in groups}) > 4
    assert [anchors(group) for group in steps[0]] != [anchors(group) for group in play()]


@pytest.mark.parametrize("m", [1, 4])
def test_a_sum_compares_the_policys_own_alone_and_weighs_one_copy_of_the_trace(play, traces, m):
    for group in play(expert={"mixing": "sum", "weight": 0.7}, warm_up={"n": 2, "m": m}):
        own, experts = group.pool(False), group.pool(True)
        assert [member.episode.ids for member in experts] == [traces[group.entry.id].ids]
        assert [member.advantage for member in experts] == [0.7]
        assert all(member.joined for member in group.members)
        assert [member.advantage for member in own] == pytest.approx(standard([member.reward for member in own]))


# -- the same, however they are batched -------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"expert": {"branch": "random"}}, {"expert": {"branch": "whole"}}])
def test_a_group_hangs_on_seed_stage_step_and_prompt_alone(play, traces, changes):
    ids = list(traces)[:5]
    together = contents(play(ids, **changes))
    assert contents(play(ids, **changes)) == together
    assert contents(play(ids, rollout={"batch_size": 3}, **changes)) == together
    # Two processes, of which each has a part of the prompts.
    assert [*contents(play(ids[:3], **changes)), *contents(play(ids[3:], **changes))] == together
    assert contents(play(ids[::-1], **changes)) == together[::-1]
    for other in ({"step": 1}, {"seed": 1}, {"name": "rl"}):
        changed = contents(play(ids, **changes, **other))
        assert [group[1][:2] for group in changed] != [group[1][:2] for group in together], other


def test_the_members_of_a_group_are_drawn_apart(play):
    for group in play(warm_up={"n": 6, "m": 6}, rollout={"temperature": 3.0}):
        assert len({tuple(member.episode.ids) for member in group.pool(False)}) == 6


def test_what_the_policy_wrote_is_what_the_model_would_say_there(play, exact):
    """At a temperature near 0 each token of the policy is the most likely one after the tokens before it."""
    for group in play(rollout={"temperature": 1e-4}):
        for member in group.members:
            episode = member.episode
            with torch.no_grad():
                logits = exact(torch.tensor([episode.prompt + episode.ids])).logits[0, len(episode.prompt) - 1 : -1]
            for at, writer in enumerate(episode.writers):
                if writer == POLICY:
                    assert int(logits[at].argmax()) == episode.ids[at]


def test_a_prompt_that_comes_again_within_a_batch_is_played_anew(play, traces):
    first, second = list(traces)[:2]
    assert in_turn([first, second, first, first, second, second], 4) == [
        first, second, f"{first}/1", f"{first}/2", second, f"{second}/1",
    ]  # fmt: skip
    one, again = play(in_turn([first, first], 2))
    assert one.entry is again.entry
    assert [member.episode.ids for member in one.members] != [member.episode.ids for member in again.members]
