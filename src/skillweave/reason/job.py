"""A run of `skillweave reason` from its settings to its folder: problems, models, searches, summary and page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from skillweave.config import Config, read_config
from skillweave.engine import EngineCounters
from skillweave.files.lock import claim
from skillweave.files.recover import sweep
from skillweave.progress import bar, console
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.team import ROLES, Role
from skillweave.reason.config import ReasonConfig
from skillweave.reason.lab import Lab
from skillweave.reason.live import LiveView
from skillweave.reason.models.cache import AnswerCache
from skillweave.reason.models.open_models import ModelRef, OpenOptions, open_models
from skillweave.reason.page import write_page
from skillweave.reason.problem import Problem
from skillweave.reason.readers import load_problems
from skillweave.reason.run import CACHE_FILE, ReasonSummary, run_problems, summarise
from skillweave.reason.search.frame import Watcher
from skillweave.reason.search.methods import SearchMethod, method_named
from skillweave.reason.search.solve import Solver
from skillweave.reason.trace import SearchTrace

PAGE = "report.html"


@dataclass(frozen=True)
class ReasonResult:
    """What a run gave.

    - ``paid``: calls that a model answered now; the others came from the cache or from finished problems
    - ``engines``: the counters of the local engines by target
    """

    traces: list[SearchTrace]
    summary: ReasonSummary
    paid: int
    engines: Mapping[str, EngineCounters]


def reason(config: ReasonConfig) -> ReasonResult:
    """Run the searches, and write the run's folder. Raises :class:`UserError` before any call is paid, if it can."""
    method = method_named(config.method)
    settings = method_settings(method, config.settings)
    prompts = PromptSet.named(config.prompts)
    refs = _model_refs(config)
    problems = load_problems(config.tasks, limit=config.limit)
    with claim(config.out):
        sweep(config.out)  # of a killed run; what it finished is not written again, so nothing else would tidy up
        result = asyncio.run(_run(config, method, settings, prompts, refs, problems))
        write_page(config.out / PAGE, f"{config.method} on {config.tasks}", _facts(config, result), result.traces)
    return result


def method_settings(method: SearchMethod, values: Mapping[str, Any]) -> Config:
    """The method's settings, with its defaults. Raises :class:`UserError` for an unknown key or a wrong value."""
    return read_config(method.config, {**dict(method.defaults), **values}, called="the method's settings")


def _model_refs(config: ReasonConfig) -> dict[Role, ModelRef]:
    """The model of each agent."""
    return {role: ModelRef.parse(config.agent_models.get(role, config.model)) for role in ROLES}


async def _run(
    config: ReasonConfig,
    method: SearchMethod,
    settings: Config,
    prompts: PromptSet,
    refs: Mapping[Role, ModelRef],
    problems: list[Problem],
) -> ReasonResult:
    options = OpenOptions(
        concurrency=config.concurrency,
        timeout=config.timeout,
        retries=config.retries,
        base=config.base,
        dtype=config.dtype,
        device=config.device,
        batch_size=config.batch_size,
    )
    with AnswerCache(config.out / CACHE_FILE) as cache, Lab(config.probes, config.seed) as lab:
        async with open_models(set(refs.values()), cache, options) as opened:
            with _watching(config, len(problems)) as (watcher, finished):
                solver = Solver(
                    config.method,
                    method,
                    settings,
                    {role: opened.by_ref[ref] for role, ref in refs.items()},
                    prompts,
                    config.agents,
                    config.budget,
                    lab,
                    config.seed,
                    config.parallel,
                    config.votes,
                    watcher,
                )
                traces = await run_problems(problems, solver, config.out, at_once=config.at_once, finished=finished)
            paid = sum(model.paid for model in opened.by_ref.values())
            counters = {target: engine.counters() for target, engine in opened.engines.items()}
    return ReasonResult(traces, summarise(traces), paid, counters)


@contextmanager
def _watching(config: ReasonConfig, problems: int) -> Iterator[tuple[Watcher | None, Callable[[SearchTrace], None]]]:
    """What the terminal shows while the searches run."""
    if config.watch == "tree":
        with LiveView(console, problems=problems) as view:
            yield view, view.finished
        return
    right = 0.0
    with bar(config.method, problems, shown=config.watch == "bar") as advance:
        count = 0

        def finished(trace: SearchTrace) -> None:
            nonlocal right, count
            count += 1
            right += trace.task
            advance(1, f"all test pairs right: {right / count:.0%}")

        yield None, finished


def _facts(config: ReasonConfig, result: ReasonResult) -> dict[str, str]:
    """The facts on top of the page."""
    limits = config.budget.model_dump(exclude_none=True)
    return {
        "method": config.method,
        "settings": ", ".join(f"{key}={value}" for key, value in config.settings.items()) or "defaults",
        "budget for each problem": ", ".join(f"{value:,} {key}" for key, value in limits.items()),
        "model": config.model,
        "prompts": config.prompts,
        "seed": str(config.seed),
        "calls answered by a model in this run": f"{result.paid:,}",
    }
