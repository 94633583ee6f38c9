"""Many problems at once: a run's folder, which resumes, and its summary.

The folder holds ``run.json`` (everything that decides the results), ``traces/NUMBER.json`` (one problem each, written
when its search ends), ``answers.sqlite`` (every answer of a model, written before it is used), ``summary.json`` and
``report.html``. A run that was killed goes on where it was: finished problems are read, and the others find the answers
that were already paid for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from skillweave import __version__
from skillweave.artefact import write_json
from skillweave.errors import UserError
from skillweave.files.read import read_object
from skillweave.reason.problem import ExamplePairs, Problem
from skillweave.reason.search.record import traced_pairs
from skillweave.reason.search.solve import Solver
from skillweave.reason.trace import AgentCounts, Record, SearchTrace

RUN_FILE = "run.json"
CACHE_FILE = "answers.sqlite"
_TRACES = "traces"


class ReasonSummary(Record):
    """The figures of a run. Unfinished problems count as wrong."""

    problems: int = Field(description="problems of the run")
    finished: int = Field(description="searches that ended")
    unfinished: int = Field(description="searches that a model interrupted, or that never began")
    solved: int = Field(description="problems whose training pairs are all solved")
    raw: float = Field(description="mean share of test pairs that are right")
    task: float = Field(description="share of problems with all test pairs right")
    calls: int = Field(description="model calls, those that the cache answered included")
    tokens: int = Field(description="tokens of prompts and completions")
    agents: dict[str, AgentCounts] = Field(description="what each agent did")
    families: dict[str, dict[str, float]] = Field(description="raw, task and number of problems of each family")


def run_identity(problems: Sequence[Problem], solver: Solver) -> dict[str, Any]:
    """Everything that decides the results of a run, as it is written to ``run.json``."""
    return {
        "version": __version__,
        "method": solver.name,
        "settings": solver.settings.model_dump(mode="json"),
        "models": {role: model.identity for role, model in solver.models.items()},
        "prompts": solver.prompts.digest,
        "agents": solver.agents.model_dump(mode="json"),
        "budget": solver.budget.model_dump(mode="json"),
        "seed": solver.seed,
        "parallel": solver.parallel,
        "votes": solver.votes,
        "probes": solver.lab.probes,
        "problems": [problem.digest for problem in problems],
    }


def open_run(folder: Path, identity: Mapping[str, Any]) -> dict[int, SearchTrace]:
    """Write ``run.json``, or check that it is of the same run; return the finished traces by the problem's index.

    Raises :class:`UserError` if the folder holds another run or a trace that cannot be read.
    """
    path = folder / RUN_FILE
    if path.exists():
        fix = f"Choose another --out, or delete {folder / _TRACES} and this file: the answers of models are kept"
        stored = read_object(path, {"method": str, "problems": list}, fix)
        different = [key for key in identity if stored.get(key) != identity[key] and key != "version"]
        if different:
            raise UserError(
                f"{folder} holds a run with other settings ({', '.join(different)}): choose another --out, or delete "
                f"it to start again"
            )
    elif any((folder / _TRACES).glob("*.json")):
        raise UserError(
            f"{folder / _TRACES} holds the traces of a run, and {path}, which says of which one, is missing: choose "
            f"another --out, or delete {folder / _TRACES} to search again (the answers of models are kept)"
        )
    else:
        write_json(path, dict(identity))
    finished = {}
    for index in range(len(identity["problems"])):
        file = _trace_file(folder, index)
        if file.exists():
            trace = read_trace(file)
            if trace.ended != "model":
                finished[index] = trace
    return finished


def read_trace(path: Path) -> SearchTrace:
    """Read one trace. Raises :class:`UserError`."""
    fix = "Delete it to search again"
    stored = read_object(path, {}, fix)
    try:
        return SearchTrace.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is no trace of a search ({where}: {first['msg']}). {fix}") from error


async def run_problems(
    problems: Sequence[Problem],
    solver: Solver,
    folder: Path,
    *,
    at_once: int = 64,
    finished: Callable[[SearchTrace], None] = lambda trace: None,
) -> list[SearchTrace]:
    """Search all problems, ``at_once`` of them at a time, and return their traces in order.

    Every problem has a trace. When a model cannot be reached any more, no further search begins; the searches that were
    interrupted or never began have ``ended`` = "model", and the next run with this folder does them.
    """
    done = open_run(folder, run_identity(problems, solver))
    for trace in done.values():
        finished(trace)
    places = asyncio.Semaphore(at_once)
    lost = False

    async def one(index: int) -> SearchTrace:
        nonlocal lost
        if index in done:
            return done[index]
        async with places:
            if lost:
                return _not_begun(problems[index].examples, solver)
            trace = await solver.solve(problems[index])
            lost = lost or trace.ended == "model"
            write_json(_trace_file(folder, index), trace.model_dump(mode="json"))
            finished(trace)
            return trace

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index)) for index in range(len(problems))]
    except* UserError as errors:
        # The first mistake has ended all searches; those that are finished are in the folder.
        raise errors.exceptions[0] from None
    traces = [task.result() for task in tasks]
    write_json(folder / "summary.json", summarise(traces).model_dump(mode="json"))
    return traces


def _not_begun(examples: ExamplePairs, solver: Solver) -> SearchTrace:
    return SearchTrace(
        problem=examples.name,
        family=examples.family,
        method=solver.name,
        seed=solver.seed,
        pairs=traced_pairs(examples),
        nodes=[],
        ended="model",
        calls=0,
        tokens=0,
        seconds=0.0,
    )


def _trace_file(folder: Path, index: int) -> Path:
    """The file of a trace. Its name has the problem's number, because names of problems come from strangers."""
    return folder / _TRACES / f"{index:05}.json"


def summarise(traces: Sequence[SearchTrace]) -> ReasonSummary:
    """The figures of a run from its traces."""
    total = max(1, len(traces))
    agents: dict[str, AgentCounts] = {}
    for trace in traces:
        for role, counts in trace.agents.items():
            agents[role] = _sum(agents.get(role, AgentCounts()), counts)
    unfinished = sum(trace.ended == "model" for trace in traces)
    names = sorted({trace.family for trace in traces})
    return ReasonSummary(
        problems=len(traces),
        finished=len(traces) - unfinished,
        unfinished=unfinished,
        solved=sum(any(node.solved and all(node.solved) for node in trace.nodes) for trace in traces),
        raw=sum(trace.raw for trace in traces) / total,
        task=sum(trace.task for trace in traces) / total,
        calls=sum(trace.calls for trace in traces),
        tokens=sum(trace.tokens for trace in traces),
        agents=agents,
        families={name: _of_family([trace for trace in traces if trace.family == name]) for name in names},
    )


def _of_family(traces: Sequence[SearchTrace]) -> dict[str, float]:
    return {
        "problems": len(traces),
        "raw": sum(trace.raw for trace in traces) / len(traces),
        "task": sum(trace.task for trace in traces) / len(traces),
    }


def _sum(one: AgentCounts, other: AgentCounts) -> AgentCounts:
    return AgentCounts(**{name: getattr(one, name) + getattr(other, name) for name in AgentCounts.model_fields})
