"""The trainer's loss and gradients are those of the formula, token by token; without experts they are TRL's."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PrinterCallback

from helpers.agents import group_of, settings
from helpers.steps_of import (
    TOKENIZER,
    Watch,
    agent_trainer,
    arguments_of,
    assert_equal,
    assert_follows_the_formula,
    counts,
    plan,
    sharp,
    watched,
)  # fmt: skip
from skillweave.methods.e3tir.config import E3tirConfig
from skillweave.methods.e3tir.group import Group
from skillweave.methods.training.policy import mark_trainable
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.trainer import fit, quiet
from skillweave.methods.training.trl_hooks import GRPOConfig, GRPOTrainer
from skillweave.tools import EXPERT, TOOL, Outcome
from skillweave.tools.call import FAULTS


@pytest.fixture(scope="module", autouse=True)
def silent():
    with quiet():
        yield


def fluent(groups: Sequence[Group]) -> None:
    """Replace about 60% of the tokens by the most likely token at their position."""
    model, rng = sharp(), random.Random(0)
    for group in groups:
        for member in group.members:
            ids = member.episode.ids
            for at in range(len(ids)):
                if rng.random() < 0.6:
                    with torch.no_grad():
                        ids[at] = int(model(torch.tensor([member.episode.prompt + ids[:at]])).logits[0, -1].argmax())


MIXED = (
    ("joins", [("ppptttppp", 0.0), ("ppp", -0.2), ("eeeeetttep", 1.0), ("eeettepppp", 0.0)]),
    ("stays out", [("pppttppp", 1.0), ("pp", 0.0), ("eeeepp", 1.0), ("eepttp", 0.0)]),
    ("no expert", [("ptp", 0.5), ("pppppptt", 0.0)]),
    ("all go wrong", [("ppp", -0.2), ("pp", -0.2), ("eeeettepp", 0.3), ("eeeeeeeep", 0.1)]),
)
ALONE = (("one", [("ppptttppp", 0.0), ("ppp", -0.2), ("pptp", 1.0), ("p", 1.0)]),
         ("two", [("pppppppptt", 0.3), ("ptttp", 0.0), ("pp", 0.0), ("pppp", 0.0)]))  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[list[int]]]:
    """The tokens of each group, drawn once because this takes a while."""
    config = settings()
    found = {}
    for told in (*MIXED, *ALONE):
        group = group_of(told[0], config, *told[1])
        fluent([group])
        found[told[0]] = [member.episode.ids for member in group.members]
    return found


@pytest.fixture
def laid(drawn) -> Callable[..., list[Group]]:
    """A function that returns groups with the advantages of these settings."""

    def groups(config: E3tirConfig, which=MIXED) -> list[Group]:
        made = [group_of(name, config, *told) for name, told in which]
        for group in made:
            for member, ids in zip(group.members, drawn[group.entry.id], strict=True):
                member.episode.ids = ids
        return made

    return groups


# -- without experts: TRL's own ---------------------------------------------------------------------------------------


def trl_trainer(folder, config: E3tirConfig, groups: Sequence[Group], callbacks) -> GRPOTrainer:
    """TRL's trainer with the same conversations and rewards."""
    stage, arguments = config.warm_up, arguments_of(folder, config)
    by_id = {group.entry.id: group for group in groups}

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
        members = [member for id in prompts[:: stage.size] for member in by_id[id].members]
        return {
            "prompt_ids": [member.episode.prompt for member in members],
            "completion_ids": [member.episode.ids for member in members],
            "env_mask": [[int(writer != TOOL) for writer in member.episode.writers] for member in members],
            "worth": [member.reward for member in members],
            "logprobs": None,
        }

    def reward(prompts, completions, worth, **others):
        return worth

    return GRPOTrainer(
        model=sharp(), reward_funcs=[reward], processing_class=TOKENIZER, rollout_func=roll_out, callbacks=callbacks,
        train_dataset=Dataset.from_dict({"prompt": [group.entry.id for group in groups]}),
        args=GRPOConfig(
            **arguments, num_generations=stage.size, shuffle_dataset=False, loss_type="dapo", beta=0.0,
            steps_per_generation=arguments["gradient_accumulation_steps"] * stage.updates, epsilon=config.clip,
            temperature=config.rollout.temperature, max_completion_length=70,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("updates", "micro", "temperature"), [(1, None, 1.0), (1, 2, 0.7), (2, 2, 2.0)])
def test_without_experts_every_step_is_trls(tmp_path, laid, updates, micro, temperature):
    stage = {"n": 4, "m": 0, "prompts": 2}
    config = plan(updates=updates, micro=micro, stage=stage, temperature=temperature)
    groups = laid(config, ALONE)
    ours, theirs = watched(tmp_path / "ours", config, groups), Watch()
    trainer = trl_trainer(tmp_path / "trl", config, groups, [theirs])
    trainer.remove_callback(PrinterCallback)
    theirs.watch_loss_of(trainer)
    trainer.train()
    assert ours.rows == theirs.rows
    # The head is ours, its rounding too; Adam makes a whole step of it where a gradient is nearly zero.
    for step in range(updates):
        assert ours.losses[step] == pytest.approx(theirs.losses[step], abs=1e-6 if step == 0 else 1e-5)
        assert_equal(ours.gradients[step], theirs.gradients[step], 5e-6 if step == 0 else 5e-5)
    assert_follows_the_formula(config, groups, ours)


# -- with experts: the formula ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("ratio", ["mixture", "shaped", "on_policy"])
def test_loss_and_gradient_are_those_of_the_slow_sum(tmp_path, laid, ratio, detach):
    config = plan(expert={"ratio": ratio, "detach": detach, "lam": 0.3})
    groups = laid(config)
    (sorts,) = assert_follows_the_formula(config, groups, watched(tmp_path, config, groups))
    assert {"prefix + True", "prefix - True", "own + True", "own - True"} <= sorts
    assert ("prefix - False" in sorts) == (ratio != "on_policy")


@pytest.mark.parametrize(
    ("changes", "micro"),
    [({"lam": 0.0}, 4), ({"lam": 1.0, "filter": False}, 1), ({"mixing": "sum", "weight": 0.7}, 8),
     ({"mixing": "sum", "ratio": "shaped", "detach": False}, None), ({"filter": False, "ratio": "shaped"}, 2)],
)  # fmt: skip
def test_other_mixtures_in_pieces_follow_it_too(tmp_path, laid, changes, micro):
    config = plan(micro=micro, expert=changes)
    groups = laid(config)
    assert_follows_the_formula(config, groups, watched(tmp_path, config, groups))


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("ratio", ["mixture", "shaped", "on_policy"])
def test_a_second_update_on_the_same_batch_follows_it_off_policy(tmp_path, laid, ratio, micro):
    config = plan(updates=2, micro=micro, expert={"ratio": ratio, "detach": False, "filter": False})
    groups = laid(config)
    seen = watched(tmp_path, config, groups)
    first, second = assert_follows_the_formula(config, groups, seen)
    assert not any(sort.startswith("own") and sort.endswith("False") for sort in first)  # all ratios are 1
    assert any(sort.startswith("own") and sort.endswith("False") for sort in second)  # some are clipped
    rows = [row for step in seen.rows for row in step]
    assert len(rows) == 16
    assert {row for group in groups for row in told(group)} <= set(rows)  # each conversation once
    assert len(seen.rows[0]) == len(seen.rows[1])


def told(group: Group) -> list[tuple[int, ...]]:
    return [(*member.episode.prompt, *member.episode.ids) for member in group.members]


def test_the_size_of_micro_batches_makes_no_difference(tmp_path, laid):
    found = []
    for micro in (None, 8, 1):
        config = plan(micro=micro)
        found.append(watched(tmp_path / str(micro), config, laid(config)))
    for other in found[1:]:
        assert other.losses == pytest.approx(found[0].losses, abs=1e-5)
        assert_equal(other.gradients[0], found[0].gradients[0])


def test_what_stays_out_is_as_if_it_were_not_there(tmp_path, laid):
    """Rejected branches are not in the loss, not in the gradients, and not among the tokens of the mean."""
    config = plan()
    with_them, without = laid(config), laid(config)
    out = [group for group in without if not all(member.joined for member in group.members)]
    assert [group.entry.id for group in out] == ["stays out"]
    for group in out:
        group.members = group.pool(False)
    one, other = (watched(tmp_path / str(at), config, groups) for at, groups in enumerate((with_them, without)))
    assert one.losses == pytest.approx(other.losses, abs=1e-7)
    for name, gradient in other.gradients[0].items():
        torch.testing.assert_close(one.gradients[0][name], gradient, rtol=1e-5, atol=1e-7)


# -- token by token ---------------------------------------------------------------------------------------------------


@pytest.fixture
def by_token(tmp_path, laid, monkeypatch):
    """A function that returns (d loss / d log pi, pi) of each token of each conversation."""

    def gradients(config: E3tirConfig) -> tuple[list[Group], dict[tuple[int, ...], tuple[list[float], list[float]]]]:
        logps = []
        score = GRPOTrainer._get_per_token_logps_and_entropies

        def scoring(self, *args, **kwargs):
            found = score(self, *args, **kwargs)
            if found[0].requires_grad:
                found[0].retain_grad()
                logps.append(found[0])
            return found

        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", scoring)
        groups = laid(config)
        if config.expert.uncertain == 0:
            for member in (member for group in groups for member in group.pool(True)):
                member.silent = range(0, member.prefix, 2)
        seen = watched(tmp_path, config, groups)
        (logp,) = logps
        found = {
            row: (gradient.tolist(), values.exp().tolist())
            for row, gradient, values in zip(seen.rows[0], logp.grad, logp.detach(), strict=True)
        }
        return groups, found

    return gradients


@pytest.mark.parametrize("detach", [True, False])
def test_each_token_has_the_gradient_of_its_kind(by_token, detach):
    config = plan(expert={"detach": detach, "ratio": "mixture"})
    groups, found = by_token(config)
    tokens = sum(counts(member) for group in groups for member in group.members)
    seen = {"tool": 0, "out": 0, "detached": 0, "clipped": 0, "prefix": 0, "own": 0}
    for group in groups:
        for member, row in zip(group.members, told(group), strict=True):
            for at, writer in enumerate(member.episode.writers):
                gradient, pi = found[row][0][at], found[row][1][at]
                ratio = pi / (0.5 * pi + 0.5) if writer == EXPERT else 1.0
                what = (
                    "tool" if writer == TOOL
                    else "out" if not member.joined
                    else "own" if writer != EXPERT
                    else "prefix" if member.advantage > 0
                    else "detached" if detach
                    else "clipped" if ratio < 0.8
                    else "prefix"
                )  # fmt: skip
                seen[what] += 1
                nothing = what in ("tool", "out", "detached", "clipped")
                expected = 0.0 if nothing else -member.advantage * ratio / tokens
                assert gradient == pytest.approx(expected, rel=1e-4, abs=0 if nothing else 1e-9), what
            assert not any(found[row][0][len(member.episode.ids) :])  # padding
    assert seen.pop("detached") + seen.pop("clipped") > 3
    assert all(seen.values())


def test_a_silent_token_has_no_gradient_and_the_others_keep_theirs(by_token):
    groups, heard = by_token(plan())
    _, found = by_token(plan(expert={"uncertain": 0.0}))
    silenced = 0
    for group in groups:
        for member, row in zip(group.members, told(group), strict=True):
            for at, before in enumerate(heard[row][0][: len(member.episode.ids)]):
                silent = member.branch and at < member.prefix and at % 2 == 0
                assert found[row][0][at] == (0.0 if silent else pytest.approx(before, rel=1e-5, abs=1e-9))
                silenced += silent and before != 0
    assert silenced > 3


# -- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["all", r"layers\.1\.mlp", "lora"])
def test_what_may_learn_is_in_the_optimiser_and_nothing_else_moves_a_bit(tmp_path, laid, train):
    from peft import LoraConfig, get_peft_model

    config = plan(updates=2)
    model = sharp()
    if train == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    else:
        mark_trainable(model, train)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert (len(learns) == len(before)) == (train == "all")
    trainer = agent_trainer(tmp_path, config, laid(config), model=model)
    trainer.train()
    named = dict(model.named_parameters())
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(named[name]) for name in learns}
    moved = {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}
    assert moved == learns


# -- what is told of it -----------------------------------------------------------------------------------------------


def test_what_is_logged_is_what_was_played(tmp_path, laid):
    config = plan()
    groups = laid(config)
    trainer = agent_trainer(tmp_path, config, groups)
    trainer.train()
    log = trainer.state.log_history[0]
    joined = [member for group in groups for member in group.members if member.joined]
    tokens = sum(map(counts, joined))
    prefix = [member.episode.writers.count(EXPERT) for member in joined]
    assert log["experts/tokens"] == pytest.approx(sum(prefix) / tokens)
    detached = sum(count for count, member in zip(prefix, joined, strict=True) if member.advantage < 0)
    assert detached > 0
    assert log["experts/detached_tokens"] == pytest.approx(detached / tokens)
    assert log["experts/joined"] == pytest.approx(2 / 3)  # of the groups that have experts
    assert log["experts/success"] == pytest.approx((0.5 + 0.5 + 0.2) / 3)
    assert log["agent/success"] == pytest.approx((0.0 + 0.5 + 0.25 + 0.0) / 4)
    assert log["rollout/tokens"] == pytest.approx(
        sum(member.episode.writers.count(1) for group in groups for member in group.members) / 4
    )
    rewards = [member.reward for member in joined]
    assert log["reward"] == pytest.approx(sum(rewards) / len(rewards))


def test_what_was_wrong_with_calls_is_logged_by_its_kind(tmp_path, laid):
    config = plan()
    groups = laid(config)
    own = [member.episode for group in groups for member in group.pool(False)]
    own[0].outcomes = [Outcome("", "timeout", 5.0), Outcome("", "timeout", 5.0), Outcome("2", None, 0.25)]
    own[1].outcomes = [Outcome("", "malformed"), Outcome("", "unknown tool"), Outcome("", "exception", 0.5)]
    own[2].outcomes = [Outcome("", "wrong arguments")]
    groups[0].pool(True)[0].episode.outcomes = [Outcome("", "exception", 9.0)]  # of a branch: not its own pool
    trainer = agent_trainer(tmp_path, config, groups)
    trainer.train()
    log = trainer.state.log_history[0]
    told = {key: value for key, value in log.items() if key.startswith("tools/")}
    assert told == pytest.approx({
        "tools/malformed": 1 / len(own), "tools/unknown tool": 1 / len(own), "tools/wrong arguments": 1 / len(own),
        "tools/exception": 1 / len(own), "tools/timeout": 2 / len(own), "tools/seconds": 10.75 / len(own),
        "tools/left_behind": 3,
    })  # fmt: skip
    assert log["agent/failed_calls"] == pytest.approx(sum(told[f"tools/{fault}"] for fault in FAULTS))


@pytest.mark.parametrize(("updates", "micro"), [(2, None), (1, 1)])
def test_the_figures_of_a_stage_are_numbers_however_it_is_cut_into_steps(tmp_path, laid, updates, micro):
    config = plan(updates=updates, micro=micro)
    trainer = agent_trainer(tmp_path, config, laid(config))
    figures = fit(trainer, "stage", Processes())
    assert figures["steps"] == updates
    assert figures["success"] == pytest.approx((0.0 + 0.5 + 0.25 + 0.0) / 4)
    assert all(math.isfinite(value) for value in figures.values())
    for entry in trainer.state.log_history:
        assert all(math.isfinite(value) for value in entry.values()), entry


def test_copies_are_left_as_they_were(tmp_path, laid):
    config = plan()
    groups = laid(config)
    before = copy.deepcopy(groups)
    watched(tmp_path, config, groups)
    assert groups == before
