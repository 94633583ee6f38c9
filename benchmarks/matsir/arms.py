"""The arms of the comparison, and the searches of one arm and seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillweave.engine import AsyncEngine, EngineCounters
from skillweave.files.hashes import digest
from skillweave.progress import bar
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.team import AgentSettings, all_roles
from skillweave.reason.budget import Budget
from skillweave.reason.job import method_settings
from skillweave.reason.lab import Lab
from skillweave.reason.models.cache import AnswerCache, CachedModel
from skillweave.reason.models.local import LocalModel, local_identity
from skillweave.reason.problem import Problem
from skillweave.reason.run import run_problems
from skillweave.reason.search.methods import method_named
from skillweave.reason.search.solve import Solver
from skillweave.reason.trace import SearchTrace
from skillweave.weave import Weave


@dataclass(frozen=True)
class Arm:
    """A method with its settings; ``form`` is that of the agents where the method leaves it open."""

    name: str
    method: str
    form: str = "program"
    settings: dict[str, Any] = field(default_factory=dict)


MATSIR = "MATSIR"
REX = "REx"
BEST_OF_N = "best of N programs"
RULES = "best of N rules"
REFINEMENT = "iterative refinement (rules, N=5, T=3)"
PYTHON = "direct Python (N=5, T=3)"
CONCEPTS = "mixture of concepts"
IO = "direct answer"
VOTE = "self-consistency"
NO_ENRICHMENT = "MATSIR without the second reward"
NO_BACKTRACKING, NO_PRUNING = "MATSIR without backtracking", "MATSIR without pruning"
WITH_CRITIC = "MATSIR with the critic"


def arms(matsir: dict[str, Any]) -> list[Arm]:
    """All arms. ``matsir`` has the settings of the method, to which each ablation adds its own.

    The critic is off in all but one, because that was best on practice problems.
    """
    return [
        Arm(IO, "io"),
        Arm(VOTE, "self-consistency"),
        Arm(RULES, "best-of-n", "rule"),
        Arm(BEST_OF_N, "best-of-n"),
        Arm(REFINEMENT, "refinement"),
        Arm(PYTHON, "direct-python"),
        Arm(CONCEPTS, "concepts"),
        Arm(REX, "rex"),
        Arm(MATSIR, "matsir", settings=matsir),
        Arm(NO_ENRICHMENT, "matsir", settings=matsir | {"coherence": 1.0}),
        Arm(WITH_CRITIC, "matsir", settings=matsir | {"critic": True}),
        Arm(NO_BACKTRACKING, "matsir", settings=matsir | {"backtrack": False}),
        Arm(NO_PRUNING, "matsir", settings=matsir | {"prune": False, "merge": False}),
    ]


@dataclass(frozen=True)
class Bench:
    """What all arms share: the served pack, the problems and the limits."""

    weave: Weave
    pack: str
    problems: Sequence[Problem]
    budget: Budget
    folder: Path
    at_once: int = 64
    parallel: int = 4
    batch_size: int = 64
    max_tokens: int = 160
    temperature: float = 1.0

    def run(self, arm: Arm, seed: int) -> tuple[list[SearchTrace], EngineCounters]:
        """The traces of one arm under one seed. Answers are kept in the folder, so equal calls are computed once."""
        return asyncio.run(self._run(arm, seed))

    async def _run(self, arm: Arm, seed: int) -> tuple[list[SearchTrace], EngineCounters]:
        method = method_named(arm.method)
        identity = local_identity(self.weave, self.pack)
        place = self.folder / f"{digest([arm.method, arm.form, arm.settings])}-{seed}"
        with AnswerCache(self.folder / "answers.sqlite") as cache, Lab(16, 0) as lab:
            async with AsyncEngine(self.weave, batch_size=self.batch_size) as engine:
                model = CachedModel(LocalModel(engine, self.pack, identity=identity), cache)
                solver = Solver(
                    arm.method,
                    method,
                    method_settings(method, arm.settings),
                    all_roles(model),
                    PromptSet.named("induction"),
                    AgentSettings(form=arm.form, temperature=self.temperature, max_tokens=self.max_tokens),
                    self.budget,
                    lab,
                    seed,
                    self.parallel,
                )
                with bar(f"{arm.name}, seed {seed}", len(self.problems)) as advance:
                    traces = await run_problems(
                        self.problems, solver, place, at_once=self.at_once, finished=lambda trace: advance(1)
                    )
                return traces, engine.counters()
