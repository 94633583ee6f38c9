"""Runs against a server that fails in every way: each problem is accounted for, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.fault_server import FaultServer, Reply, completion_body, fault_server
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.team import AgentSettings, all_roles
from skillweave.reason.budget import Budget
from skillweave.reason.lab import Lab
from skillweave.reason.models.cache import AnswerCache, CachedModel
from skillweave.reason.models.openai_model import OpenAIModel
from skillweave.reason.problem import ExamplePairs, HeldOut, IOPair, Problem
from skillweave.reason.run import run_problems, summarise
from skillweave.reason.search.matsir import MatsirConfig
from skillweave.reason.search.methods import SEARCH_METHODS
from skillweave.reason.search.solve import Solver
from skillweave.reason.trace import SearchTrace

PROBLEMS = [
    Problem(
        ExamplePairs(f"add {n}", tuple(IOPair(x, x + n) for x in range(3)), "add"),
        HeldOut([IOPair(10, 10 + n)]),
    )
    for n in range(12)
]
FAULTS = (
    Reply(429, headers={"Retry-After": "0.01"}),
    Reply(500),
    Reply(body="<html>"),
    Reply(how="cut"),
    Reply(body={"choices": []}),
    Reply(how="hang up"),
)


def answer(body: dict[str, Any]) -> Reply:
    """A critic's note, or a program that adds a number, which the seed decides."""
    prompt = body["messages"][-1]["content"]
    if prompt.endswith("What is wrong?"):
        return Reply(answer="it adds the wrong number")
    return Reply(answer=f"def f(x):\n    return x + {body['seed'] % 9}")


def name_of(body: dict[str, Any]) -> tuple[str, int]:
    """What tells a call from all others of a run."""
    return body["messages"][-1]["content"], body["seed"]


def most_paid(server: FaultServer) -> int:
    """How often the call that was answered most often was answered: what a user pays for."""
    return max(Counter(map(name_of, server.paid)).values())


def run(folder: Path, url: str, retries: int) -> list[SearchTrace]:
    async def go() -> list[SearchTrace]:
        with AnswerCache(folder / "answers.sqlite") as cache, Lab(probes=4) as lab:
            model = CachedModel(OpenAIModel(url, "m", timeout=2.0, retries=retries, wait=0.005), cache)
            solver = Solver(
                "matsir",
                SEARCH_METHODS["matsir"],
                MatsirConfig(),
                all_roles(model),
                PromptSet.named("induction"),
                AgentSettings(),
                Budget(calls=12),
                lab,
                seed=3,
            )
            try:
                return await run_problems(PROBLEMS, solver, folder, at_once=6)
            finally:
                await model.close()

    return asyncio.run(go())


def same(one: list[SearchTrace], other: list[SearchTrace]) -> bool:
    """Whether two runs differ in nothing but their time."""
    dumps = [[trace.model_dump(exclude={"seconds"}) for trace in traces] for traces in (one, other)]
    return dumps[0] == dumps[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[SearchTrace]:
    """The run against a server without faults."""
    with fault_server(after=answer) as server:
        return run(tmp_path_factory.mktemp("whole"), server.url, retries=0)


def test_a_server_that_often_fails_changes_nothing(tmp_path: Path, whole: list[SearchTrace]) -> None:
    draws = random.Random(0)
    tries: Counter[tuple[str, int]] = Counter()

    def often_fails(body: dict[str, Any]) -> Reply:
        tries[name_of(body)] += 1
        fails = tries[name_of(body)] <= 3 and draws.random() < 0.5
        return draws.choice(FAULTS) if fails else answer(body)

    with fault_server(after=often_fails) as server:
        traces = run(tmp_path, server.url, retries=3)
    assert max(tries.values()) == 4
    assert same(traces, whole)
    assert most_paid(server) == 1


@pytest.mark.parametrize("dies_after", [0, 17, 60])
def test_a_server_that_dies_and_comes_back(tmp_path: Path, whole: list[SearchTrace], dies_after: int) -> None:
    death: list[threading.Thread] = []

    def dies(body: dict[str, Any]) -> Reply:
        if len(server.requests) <= dies_after:
            return answer(body)
        if not death:
            death.append(threading.Thread(target=server.die))
            death[0].start()
        return Reply(how="hang up")

    with fault_server(after=dies) as server:
        first = run(tmp_path, server.url, retries=1)
        death[0].join()
        assert [trace.problem for trace in first] == [problem.name for problem in PROBLEMS]
        assert summarise(first).unfinished > 0
        assert len(server.paid) <= dies_after
        server.after = answer
        server.start()
        again = run(tmp_path, server.url, retries=1)
    assert same(again, whole)
    assert summarise(again).unfinished == 0
    assert most_paid(server) == 1


def test_a_model_that_answers_with_nothing_ends_no_run(tmp_path: Path) -> None:
    with fault_server(after=Reply(body=completion_body(None, reasoning_content="hm"))) as server:
        traces = run(tmp_path, server.url, retries=0)
    summary = summarise(traces)
    assert (summary.finished, summary.solved) == (len(PROBLEMS), 0)
    assert len(server.requests) == len({name_of(body) for body in server.requests}) == summary.calls
