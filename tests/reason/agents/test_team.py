"""The team asks, reads, repairs once, counts, and keeps to the budget."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers.scripted_model import ScriptedModel, completion, last_message, one_after_another
from skillweave.errors import UserError
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.team import AgentSettings, AgentTeam, BudgetSpent, all_roles
from skillweave.reason.budget import Budget, Meter
from skillweave.reason.hypothesis import Evaluation, Hypothesis, Judgement, Note, Proposal
from skillweave.reason.models.model import ModelCall, ModelUnreachable
from skillweave.reason.problem import ExamplePairs, IOPair, Missing
from skillweave.reason.trace import AgentCounts

DROP = "def f(x):\n    return x[1:]"
KEEP = "def f(x):\n    return x"
EXAMPLES = ExamplePairs("drop", (IOPair([1, 2], [2]), IOPair([3], []), IOPair([], [])))
KEPT = Evaluation(([1, 2], Missing("IndexError"), []), (False, False, True), "b")
WRONG = Hypothesis("keep all", KEEP)


def team(model: Any, prompts: str = "general", calls: int = 64, seed: int = 0, **settings: Any) -> AgentTeam:
    meter = Meter(Budget(calls=calls))
    return AgentTeam(EXAMPLES, all_roles(model), PromptSet.named(prompts), AgentSettings(**settings), meter, seed)


def test_a_proposal_is_one_call_whose_tokens_are_counted() -> None:
    model = ScriptedModel(lambda call: f"Rule: drop one\n```python\n{DROP}\n```")
    asked = team(model)
    assert asyncio.run(asked.propose("propose/0", [WRONG, WRONG])) == Proposal(Hypothesis("drop one", DROP))
    (call,) = model.calls
    prompt = last_message(call)
    assert "1. [1, 2] -> [2]" in prompt
    assert prompt.count(KEEP) == 1  # equal programs are shown once
    tokens = completion(f"Rule: drop one\n```python\n{DROP}\n```", call).tokens
    assert asked.counts == {"proposer": AgentCounts(calls=1, tokens=tokens)}
    assert (asked.meter.calls, asked.meter.tokens) == (1, tokens)


def test_the_refiner_is_shown_what_failed_and_why() -> None:
    model = ScriptedModel(lambda call: DROP)
    note, before = Note("all", "one is lost", 0), Hypothesis("", "def f(x):\n    return []")
    assert asyncio.run(team(model).refine("refine/0", WRONG, KEPT, note, [before])).hypothesis == Hypothesis("", DROP)
    prompt = last_message(model.calls[0])
    for part in (
        "It fails on 2 of 3 examples",
        "1. [1, 2] must give [2], but gave [1, 2]",
        "2. [3] must give [], but gave error: IndexError",
        "all: one is lost",
        before.program,
        "Rule: keep all",
    ):
        assert part in prompt
    asyncio.run(team(model, "induction").refine("refine/0", WRONG, KEPT, note, [before]))
    assert last_message(model.calls[1]) == (
        f"[1, 2] -> [2]\n[3] -> []\n[] -> []\nWrong:\n{KEEP}\n[1, 2] gave [1, 2]\n[3] gave error: IndexError\n"
        f"Note: all: one is lost\nFailed:\n{before.program}\nFix f."
    )


def test_an_answer_that_cannot_be_read_is_repaired_once() -> None:
    model = ScriptedModel(one_after_another("<think>hm</think>I think I drop one.", DROP))
    asked = team(model)
    assert asyncio.run(asked.propose("propose/0")) == Proposal(Hypothesis("", DROP))
    first, second = model.calls
    assert second.messages[:2] == (*first.messages, ("assistant", "I think I drop one."))
    assert "there is no Python function in it" in last_message(second)
    assert second.seed != first.seed
    counts = asked.counts["proposer"]
    assert (counts.calls, counts.repaired, counts.failed, asked.meter.calls) == (2, 1, 0, 2)


def test_after_a_failed_repair_the_answer_is_counted_as_failed() -> None:
    model = ScriptedModel(lambda call: completion("I do not know.", call, "length"))
    asked = team(model, max_tokens=7)
    proposal = asyncio.run(asked.propose("propose/0"))
    assert proposal.hypothesis is None
    assert proposal.failure == (
        "there is no Python function in it; it was cut off at 7 tokens; after a repair: there is no Python function in "
        "it; it was cut off at 7 tokens"
    )
    counts = asked.counts["proposer"]
    assert (counts.calls, counts.repaired, counts.failed, counts.cut_off) == (2, 0, 1, 2)


def test_the_small_model_is_not_asked_to_repair() -> None:
    model = ScriptedModel(lambda call: "I do not know.")
    asked = team(model, "induction")
    assert asyncio.run(asked.propose("propose/0")).failure == "there is no Python function in it"
    assert (len(model.calls), asked.counts["proposer"].failed) == (1, 1)


def test_in_the_form_rule_the_coder_writes_the_program() -> None:
    model = ScriptedModel(one_after_another('{"rule": "drop one"}', DROP.replace("f(", "g(")))
    asked = team(model, form="rule")
    proposal = asyncio.run(asked.propose("propose/0", [WRONG]))
    assert proposal == Proposal(Hypothesis("drop one", DROP.replace("f(", "g(") + "\n\nf = g"))
    assert "- keep all" in last_message(model.calls[0])
    assert "Rule: drop one" in last_message(model.calls[1])
    assert (asked.counts["proposer"].calls, asked.counts["coder"].calls, asked.counts["coder"].renamed) == (1, 1, 1)


def test_a_rule_without_a_program_is_kept_for_the_judge() -> None:
    model = ScriptedModel(
        lambda call: "I do not know." if "Write this rule" in call.messages[0][1] else '{"rule": "drop one"}'
    )
    proposal = asyncio.run(team(model, form="rule").propose("propose/0"))
    assert proposal.hypothesis == Hypothesis("drop one", "")
    assert "no Python function" in (proposal.failure or "")
    proposal = asyncio.run(team(model, form="rule", calls=1).propose("propose/0"))
    assert proposal == Proposal(Hypothesis("drop one", ""), "the budget left no call for the coder")


def test_critic_judge_and_direct_answers() -> None:
    def script(call: ModelCall) -> str:
        prompt = call.messages[0][1]
        if "Judge" in prompt:
            assert "earlier rule: keep all" in prompt
            return '{"consistent": 0.5, "says_more": true}'
        if "New input" in prompt:
            return '{"output": [2]}' if "[7, 2]" in prompt else "?"
        return '{"part": "all", "why": "one is lost", "pair": 2}'

    asked = team(ScriptedModel(script))
    assert asyncio.run(asked.criticise("criticise/0", WRONG, KEPT)) == Note("all", "one is lost", 1)
    assert asyncio.run(asked.judge("judge/0", Hypothesis("drop one", ""), WRONG)) == Judgement(0.5, True)
    assert asyncio.run(asked.answer("answer/0", [7, 2])) == [2]
    missing = asyncio.run(asked.answer("answer/1", [7]))
    assert isinstance(missing, Missing)
    assert "not a value" in missing.why
    assert asked.counts["answerer"].calls == 3  # one is a repair

    unreadable = team(ScriptedModel(lambda call: "a\nb"))
    assert asyncio.run(unreadable.criticise("criticise/0", WRONG, KEPT)) is None
    assert asyncio.run(unreadable.judge("judge/0", WRONG, None)) is None


def test_the_seed_depends_on_run_problem_and_key() -> None:
    model = ScriptedModel(lambda call: DROP)
    for seed, key in ((0, "propose/0"), (0, "propose/0"), (1, "propose/0"), (0, "propose/1")):
        asyncio.run(team(model, seed=seed).propose(key))
    first, same, *others = (call.seed for call in model.calls)
    assert first == same
    assert len({first, *others}) == 3
    assert all(0 <= call.seed < 2**31 for call in model.calls)


def test_no_call_is_made_beyond_the_budget() -> None:
    async def run() -> list[Any]:
        return await asyncio.gather(*(asked.propose(f"propose/{i}") for i in range(5)), return_exceptions=True)

    model = ScriptedModel(lambda call: DROP)
    asked = team(model, calls=3)
    results = asyncio.run(run())
    assert (len(model.calls), asked.meter.calls) == (3, 3)
    assert [type(result) for result in results] == [Proposal] * 3 + [BudgetSpent] * 2

    asked = team(ScriptedModel(lambda call: "I do not know."), calls=1)
    failed = asyncio.run(asked.propose("propose/0"))
    assert (failed.failure or "").endswith("the budget left no call for a repair")
    assert asked.counts["proposer"].failed == 1


def test_a_call_that_was_never_made_is_not_counted() -> None:
    def dead(call: ModelCall) -> str:
        raise ModelUnreachable("gone")

    asked = team(ScriptedModel(dead))
    with pytest.raises(ModelUnreachable):
        asyncio.run(asked.propose("propose/0"))
    assert (asked.meter.calls, asked.counts) == (0, {})


def test_each_role_may_have_its_own_model() -> None:
    proposer, coder = ScriptedModel(lambda call: "keep all"), ScriptedModel(lambda call: KEEP)
    settings, meter = AgentSettings(form="rule"), Meter(Budget())
    asked = AgentTeam(EXAMPLES, {"proposer": proposer, "coder": coder}, PromptSet.named("general"), settings, meter, 0)
    assert asyncio.run(asked.propose("propose/0")) == Proposal(WRONG)
    assert (len(proposer.calls), len(coder.calls)) == (1, 1)
    with pytest.raises(UserError, match="no model is given for the critic"):
        asyncio.run(asked.criticise("criticise/0", WRONG, KEPT))
    assert meter.calls == 2
