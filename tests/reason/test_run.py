"""Runs of many problems: every problem is accounted for, and a killed run pays for nothing twice."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.scripted_model import ScriptedModel, last_message
from skillweave.errors import UserError
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.team import AgentSettings, all_roles
from skillweave.reason.budget import Budget
from skillweave.reason.harvest import harvest, write_harvest
from skillweave.reason.lab import Lab
from skillweave.reason.models.cache import AnswerCache, CachedModel
from skillweave.reason.models.model import ModelCall, ModelUnreachable
from skillweave.reason.problem import ExamplePairs, HeldOut, IOPair, Problem
from skillweave.reason.run import open_run, run_identity, run_problems, summarise
from skillweave.reason.search.methods import SEARCH_METHODS
from skillweave.reason.search.solve import Solver
from skillweave.reason.trace import SearchTrace

PROMPTS = PromptSet.named("induction")
ADD = "def f(x):\n    return x + {n}"


def problems(count: int = 6) -> list[Problem]:
    """Problem i asks for x + i, for i from 1."""
    return [
        Problem(
            ExamplePairs(f"add {n}", tuple(IOPair(x, x + n) for x in range(3)), "add"),
            HeldOut([IOPair(x, x + n) for x in (10, 20)]),
        )
        for n in range(1, count + 1)
    ]


def guess(call: ModelCall) -> str:
    """Proposes to add 2; a refiner adds one more than what failed; the critic says nothing useful."""
    prompt = last_message(call)
    if prompt.endswith("What is wrong?"):
        return "it adds too little"
    if "-> ?" in prompt:
        return "12"
    wrong = prompt.partition("x + ")[2]
    return ADD.format(n=int(wrong[0]) + 1 if wrong else 2)


@contextmanager
def solver(model: object, method: str = "matsir", calls: int = 30, **settings: object) -> Iterator[Solver]:
    with Lab(probes=4) as lab:
        chosen = SEARCH_METHODS[method]
        yield Solver(
            method,
            chosen,
            chosen.config(**dict(chosen.defaults) | settings),
            all_roles(model),
            PROMPTS,
            AgentSettings(),
            Budget(calls=calls),
            lab,
            seed=0,
        )


def run(folder: Path, model: object, method: str = "matsir", at_once: int = 3, **settings: object) -> list[SearchTrace]:
    with solver(model, method, **settings) as ready:
        return asyncio.run(run_problems(problems(), ready, folder, at_once=at_once))


def test_a_run_solves_grades_and_writes(tmp_path: Path) -> None:
    traces = run(tmp_path, ScriptedModel(guess))
    assert [trace.task for trace in traces] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # x + 1 is never guessed
    summary = summarise(traces)
    assert (summary.problems, summary.unfinished, summary.solved) == (6, 0, 5)
    assert summary.task == pytest.approx(5 / 6)
    assert summary.calls == sum(trace.calls for trace in traces)
    assert sum(counts.calls for counts in summary.agents.values()) == summary.calls
    assert json.loads((tmp_path / "summary.json").read_text())["task"] == pytest.approx(5 / 6)
    trace = traces[3]
    assert [point.task for point in trace.course] == [0.0, 1.0]
    assert [(test.input, test.predicted, test.right) for test in trace.tests] == [
        ("10", "14", True),
        ("20", "24", True),
    ]


@pytest.mark.parametrize("method", ["io", "self-consistency"])
def test_direct_answers(tmp_path: Path, method: str) -> None:
    traces = run(tmp_path, ScriptedModel(guess), method)
    assert [trace.raw for trace in traces] == [0.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert {trace.calls for trace in traces} == {2 if method == "io" else 30}


def test_a_second_run_reads_the_finished_problems(tmp_path: Path) -> None:
    first = run(tmp_path, ScriptedModel(guess))
    unused = ScriptedModel(guess)
    assert run(tmp_path, unused) == first
    assert not unused.calls


@pytest.mark.parametrize("after", [1, 5, 14, 23])
def test_a_dead_model_loses_nothing_and_nothing_is_paid_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    paid: list[ModelCall] = []
    said: list[str] = []
    monkeypatch.setattr("skillweave.reason.search.solve.say_once", said.append)

    def dies(call: ModelCall) -> str:
        if len(paid) == after:
            raise ModelUnreachable("the server died")
        paid.append(call)
        return guess(call)

    def counted(call: ModelCall) -> str:
        paid.append(call)
        return guess(call)

    with AnswerCache(tmp_path / "answers.sqlite") as cache:
        traces = run(tmp_path, CachedModel(ScriptedModel(dies), cache))
    assert len(traces) == 6
    assert len(paid) == after
    assert summarise(traces).unfinished > 0
    assert set(said) == {"A model gave no answer: the server died"}
    with AnswerCache(tmp_path / "answers.sqlite") as cache:
        again = run(tmp_path, CachedModel(ScriptedModel(counted), cache))
    assert summarise(again).unfinished == 0
    assert len({(call.messages, call.seed) for call in paid}) == len(paid)
    whole = run(tmp_path / "whole", ScriptedModel(guess))
    left_out = {"seconds"}
    assert [trace.model_dump(exclude=left_out) for trace in again] == [
        trace.model_dump(exclude=left_out) for trace in whole
    ]


def test_a_request_that_is_refused_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    def refuses(call: ModelCall) -> str:
        raise UserError("the prompt is too long")

    with pytest.raises(UserError, match="too long"):
        run(tmp_path, ScriptedModel(refuses))


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, ScriptedModel(guess))
    with pytest.raises(UserError, match="other settings \\(settings\\)"):
        run(tmp_path, ScriptedModel(guess), patience=9)
    with pytest.raises(UserError, match="method"):
        run(tmp_path, ScriptedModel(guess), "rex")
    (tmp_path / "traces" / "00002.json").write_text('{"problem": 3}')
    with pytest.raises(UserError, match=r"00002.json is no trace .*\. Delete it to search again"):
        run(tmp_path, ScriptedModel(guess))
    (tmp_path / "traces" / "00002.json").write_text("")
    with pytest.raises(UserError, match=r"00002.json, line 1: not valid JSON .*\. Delete it to search again"):
        run(tmp_path, ScriptedModel(guess))
    (tmp_path / "traces" / "00002.json").unlink()
    (tmp_path / "run.json").write_text("{}")
    with solver(ScriptedModel(guess)) as ready, pytest.raises(UserError, match="'method' is missing"):
        open_run(tmp_path, run_identity(problems(), ready))


def test_traces_of_an_unknown_run_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    first = run(tmp_path, ScriptedModel(guess), "rex")
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match=r"traces holds the traces of a run, and .*run.json.* is missing: choose"):
        run(tmp_path, ScriptedModel(guess))
    shutil.rmtree(tmp_path / "traces")
    again = run(tmp_path, ScriptedModel(guess))
    assert {trace.method for trace in first} == {"rex"}
    assert {trace.method for trace in again} == {"matsir"}


def test_searches_do_not_depend_on_how_many_run_at_once(tmp_path: Path) -> None:
    def slow(call: ModelCall) -> object:
        async def late() -> str:
            await asyncio.sleep(call.seed % 7 / 1000)
            return guess(call)

        return late()

    one = run(tmp_path / "one", ScriptedModel(slow), at_once=1)
    many = run(tmp_path / "many", ScriptedModel(slow), at_once=6)
    assert [trace.nodes for trace in one] == [trace.nodes for trace in many]


def test_the_harvest_holds_each_behaviour_once_and_nothing_of_a_test_pair(tmp_path: Path) -> None:
    traces = run(tmp_path, ScriptedModel(guess))
    found = harvest(traces, PROMPTS)
    programs = [row for row in found.rows if row["kind"] == "program"]
    refinements = [row for row in found.rows if row["kind"] == "refine"]
    # All problems have the inputs 0, 1, 2, so a program is one behaviour whichever problem it was written for.
    assert len({row["answer"] for row in programs}) == len(programs)
    assert found.alike > 0
    assert refinements
    for row in programs:
        n = int(row["answer"].rpartition("+ ")[2])
        assert row["prompt"].splitlines()[:3] == [f"{x} -> {x + n}" for x in range(3)]
    for row in refinements:
        assert "gave" in row["prompt"]
        assert row["answer"] not in row["prompt"]
    told = "\n".join(row["prompt"] + row["answer"] for row in found.rows)
    assert not any(text in told for text in ("10 ->", "20 ->", "-> 14", "-> 24"))
    write_harvest(tmp_path / "rows.jsonl", found)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found.rows


def test_the_harvest_says_what_it_leaves_out(tmp_path: Path) -> None:
    answers = [
        "def f(x):\n    return x",
        "def f(x):\n    return 7",
        "def f(x):\n    return x[0]",
        ADD.format(n=3),
        ADD.format(n=4),
    ]
    traces = run(tmp_path, ScriptedModel(lambda call: answers[call.seed % 5]), "best-of-n")
    found = harvest(traces[:1], PROMPTS, most=1)
    assert (found.trivial > 0, found.failing > 0, len(found.rows)) == (True, True, 1)
    assert found.executed == found.trivial + found.failing + found.alike + found.beyond + 1
    assert len(found.left_out) == 4
