"""The benchmark of the headline: its prompts and judges, its figures, and a quick run of its main arms."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from skillweave.base import answer_ids, prompt_ids
from skillweave.micro import micro_tokenizer
from skillweave.tasks.expert_traces import scripted_traces
from skillweave.tasks.with_tools import load_agent
from skillweave.tools.call_format import CallFormat

texts = importlib.import_module("benchmarks.headline.texts")
questions = importlib.import_module("benchmarks.headline.questions")
scale = importlib.import_module("benchmarks.headline.scale")
micro = importlib.import_module("benchmarks.headline.micro")
small = importlib.import_module("benchmarks.headline.small")
measure = importlib.import_module("benchmarks.headline.measure")
show = importlib.import_module("benchmarks.headline.show")
benchmark = importlib.import_module("benchmarks.headline.__main__")


def test_operations_answer_as_they_say() -> None:
    said = {name: operation.answer("dabca") for name, operation in texts.OPERATIONS.items()}
    assert said == {
        "sort_up": "aabcd", "sort_down": "dcbaa", "reverse": "acbad", "swap": "adcba", "shift": "fcdec",
        "turn": "abcad", "odd": "dba", "copy": "dabca", "first": "d", "last": "a", "length": "5",
    }  # fmt: skip


def test_no_prompt_is_in_two_splits() -> None:
    for skill in ("sort_up", micro.MICRO.added):
        asked = [micro.MICRO.asked(skill, 3, split) for split in (scale.TEST, scale.TUNE)]
        prompts = [{question.prompt for question in each} for each in asked]
        trained = {row["messages"][0]["content"] for row in micro.MICRO.rows(skill, 3)}
        assert len(prompts[0]) == micro.MICRO.tested
        assert len(trained) == micro.MICRO.steps * micro.MICRO.batch
        assert not prompts[0] & prompts[1]
        assert not trained & (prompts[0] | prompts[1])


def test_other_words_ask_for_the_same() -> None:
    assert small._REWORDED["steps"]("Start with 6. Multiply by 8. Add 7. What is it now?") == (
        "Take 6, then multiply by 8, and after that add 7. Tell me the result."
    )
    asked = "Remove all numbers smaller than -45 in this list: ['-75', '90']\nReturn the new list in the same format."
    assert small._ALIKE["number_filtering"](asked) == "Remove what is smaller than -45: -75, 90"
    assert "take out the numbers below -45" in small._REWORDED["number_filtering"](asked)
    with pytest.raises(ValueError, match="no prompt of this skill"):
        small._REWORDED["steps"]("Sort from smallest to largest: 1, 2")


def test_agents_learn_what_their_conversations_look_like() -> None:
    tokenizer = micro_tokenizer()
    agent = load_agent({"source": "builtin", "name": "steps", "splits": {"train": 1, "calibration": 0, "test": 0}})
    (trace,) = scripted_traces(agent, agent.task.split("train"))
    messages = small._as_text(trace.messages, agent)
    prompt, ids, _ = CallFormat(tokenizer, agent.toolbox).trace(trace.messages)
    *before, answer = messages
    assert prompt_ids(tokenizer, before) + answer_ids(tokenizer, answer["content"], before) == prompt + ids


def test_shares_of_routes() -> None:
    asked = [questions.Question("", home, questions.unjudged) for home in (("a",), ("a",), ("a", "b"), (), ("b",))]
    given = [SimpleNamespace(pack=pack) for pack in ("a", None, "b", "a", "a")]
    assert questions.routing(asked, given) == {"right": 0.4, "to_base": 0.2, "wrong_pack": 0.4}
    assert questions.share_of_both(("ab", "cd"))("it is cd") == 0.5
    assert questions.exact("ab")(None) == 0


def test_tuning_takes_the_best_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    best = {1e-3: 0.2, 3e-3: 0.6}
    monkeypatch.setattr(
        measure, "run_all", lambda plans, *_, jobs: [{"scores": {"x": best[plan.rate]}} for plan in plans]
    )
    assert measure.tuned("micro", scale.MULTI, tmp_path) == 3e-3
    assert measure.tuned("small", scale.SPECIALIST, tmp_path) == 3e-4
    assert {plan.split for plan in measure.grid("micro", scale.LORA)} == {scale.TUNE}
    assert {plan.seed for plan in measure.grid("micro", scale.LORA)} == {scale.TUNING_SEED}


def test_claims_compare_seeds_that_both_arms_have() -> None:
    def rows(arm: str, *scores: float) -> list[dict]:
        return [
            {"arm": arm, "seed": seed, "split": scale.TEST, "scores": {"a": score, "b": score - 0.1}}
            for seed, score in enumerate(scores)
        ]

    found = [*rows(scale.SPECIALIST, 0.9, 0.8, 0.9), *rows(measure.NAMED, 0.9, 0.7), *rows(scale.MULTI, 0.6, 0.5)]
    found.append({"arm": scale.MULTI, "seed": 2, "split": scale.TEST, "scores": {"a": 1.0}})  # not complete
    claims = {claim.claim: claim for claim in show.claims(found)}
    behind = claims["specialists' mean less that of the weave, named, points"]
    assert behind.value == pytest.approx(5)
    assert not behind.holds
    ahead = claims["mean of the weave, named less that of the multi-task model, points"]
    assert ahead.value == pytest.approx(25)
    assert math.isfinite(ahead.low)
    assert len(claims) == 2


def test_headline(tmp_path: Path) -> None:
    arms = [scale.SPECIALIST, measure.NAMED, measure.ROUTED, scale.DARE]
    benchmark.main(["--quick", "--out", str(tmp_path), "--arms", *arms])
    found = json.loads((tmp_path / "headline-quick.json").read_text())
    assert [row["arm"] for row in found["rows"]] == [arms[0], arms[0], arms[1], arms[1], arms[2], arms[3]]
    routed = found["rows"][4]["routing"]
    assert set(routed) == {questions.OWN, *questions.HARD}
    assert all(each["right"] + each["to_base"] + each["wrong_pack"] == pytest.approx(1) for each in routed.values())
    assert "<svg" in (tmp_path / "headline-quick.svg").read_text()
