"""The searches that MATSIR is compared with, in the same frame and with the same budget.

Each stops when all training pairs are solved, and goes on until the budget is spent: where a published protocol has
fewer calls, it starts again with new samples and keeps the best.
"""

from __future__ import annotations

import random
from functools import partial

from pydantic import Field

from skillweave.config import Config
from skillweave.reason.hypothesis import Proposal
from skillweave.reason.search.frame import Expansion, SearchFrame
from skillweave.reason.search.tree import Node, executed
from skillweave.reason.solution import Ended


class BestOfNConfig(Config):
    """Best of N: independent proposals until one solves all training pairs. N is what the budget allows."""


async def search_best_of_n(frame: SearchFrame, _settings: BestOfNConfig) -> Ended:
    """Propose until the training pairs are solved or the budget is spent."""
    while not frame.solved and frame.wave:
        await frame.expand([_step(frame, None) for _ in range(frame.wave)])
    return "solved" if frame.solved else "budget"


class RefinementConfig(Config):
    """Iterative refinement (Qiu et al., 2023): rounds of N samples, each refining the best of the round before."""

    rounds: int = Field(default=3, ge=1, description="T: rounds before it starts again with new proposals")
    samples: int = Field(default=5, ge=1, description="N: hypotheses in each round")


async def search_refinement(frame: SearchFrame, settings: RefinementConfig) -> Ended:
    """Refine in rounds of N hypotheses: each round refines the best hypothesis of the round before.

    Source: Qiu et al. 2023, arXiv 2310.08559. The published protocol ends after T rounds; with budget left, this one
    starts again.
    """
    best: Node | None = None
    round_number = 0
    while not frame.solved and frame.wave:
        if round_number % settings.rounds == 0:
            best = None
        made: list[Node] = []
        while len(made) < settings.samples and frame.wave and not frame.solved:
            count = min(frame.wave, settings.samples - len(made))
            added = await frame.expand([_step(frame, best) for _ in range(count)])
            made += added
            if not added:
                break
        ran = [node for node in made if node.evaluation is not None]
        # A round without any program that could be read starts again.
        best = max(ran, key=lambda node: node.coherent, default=None)
        round_number += 1
    return "solved" if frame.solved else "budget"


class RexConfig(Config):
    """REx (Tang et al., 2024): the hypothesis to refine is drawn by Thompson sampling."""

    heuristic: float = Field(default=20.0, gt=0, description="C of Beta(1 + C h, 1 + C (1 - h) + N)")
    count_failures: bool = Field(
        default=True, description="add N, the refinements of the arm so far, to the second parameter: each has failed"
    )


async def search_rex(frame: SearchFrame, settings: RexConfig) -> Ended:
    """Refine the hypothesis with the highest draw from Beta(1 + C h, 1 + C (1 - h) + N).

    h is the share of training pairs that it solves, N the number of its refinements so far (all failed, else the search
    would have ended). The root, from which a new hypothesis is proposed, is an arm with h = 0. Draws come from the
    run's seed. Source: Tang et al. 2024, arXiv 2405.17503, with C = 20. The formula in our notes has no N; with it the
    distribution is the posterior after N failures (`ours`).
    """
    draws = random.Random(frame.team.seed_of("rex"))
    while not frame.solved and frame.wave:
        wave = []
        for _ in range(frame.wave):
            arms = [frame.tree.root, *frame.tree.hypotheses]
            arm = max(arms, key=lambda node: _draw(node, settings, draws))
            arm.growing += 1
            wave.append(_step(frame, None if arm.parent is None else arm))
        await frame.expand(wave)
        for expansion in wave:
            frame.tree[expansion.parent].growing -= 1
    return "solved" if frame.solved else "budget"


def _draw(node: Node, settings: RexConfig, draws: random.Random) -> float:
    # Refinements in flight count as failures, so that several in flight spread out.
    failures = len(node.children) + node.growing if settings.count_failures else 0
    strength = settings.heuristic
    return draws.betavariate(1 + strength * node.coherent, 1 + strength * (1 - node.coherent) + failures)


class ConceptsConfig(Config):
    """Mixture of concepts (Lee et al., 2025): first several distinct rules in words, then a program for each."""

    concepts: int = Field(default=4, ge=1, description="distinct rules that are collected before they become programs")


async def search_concepts(frame: SearchFrame, settings: ConceptsConfig) -> Ended:
    """Collect distinct rules in words, turn each into a program, and start again until the budget is spent.

    A rule that was already collected, in the same words, is not turned into a program again.
    """
    known: set[str] = set()
    number = 0
    while not frame.solved and frame.wave:
        rules = await frame.team.concepts(f"concepts/{number}", settings.concepts, avoid=sorted(known))
        number += 1
        new = [rule for rule in dict.fromkeys(rules) if rule not in known]
        known.update(new)
        while new and frame.wave and not frame.solved:
            now, new = new[: frame.wave], new[frame.wave :]
            await frame.expand([Expansion(0, "propose", partial(_coded, frame, rule)) for rule in now])
    return "solved" if frame.solved else "budget"


async def _coded(frame: SearchFrame, rule: str) -> Proposal:
    return await frame.team.code(f"code/{rule}", rule)


# -- steps that several searches take --------------------------------------------------------------------------------


def _step(frame: SearchFrame, parent: Node | None) -> Expansion:
    """A new proposal, or a refinement of ``parent``."""
    if parent is None:
        return Expansion(0, "propose", partial(frame.team.propose, frame.propose_key()))
    hypothesis, evaluation = executed(parent)
    key = frame.refine_key(hypothesis)
    return Expansion(parent.number, "refine", partial(frame.team.refine, key, hypothesis, evaluation))
