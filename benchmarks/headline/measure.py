"""Measure one cell: the scores of one arm with one seed. What is missing for it is trained, zipped and tuned first."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.runs import run_all
from benchmarks.headline.add import added_skill
from benchmarks.headline.lab import Lab, added, opened
from benchmarks.headline.micro import MICRO, MICRO_LONG, QUICK
from benchmarks.headline.questions import EVERYDAY, HARD, OWN, Question, replies, routing, scores
from benchmarks.headline.scale import (
    LORA,
    MERGES,
    MONOLITH,
    MULTI,
    SPECIALIST,
    TEST,
    TUNE,
    TUNING_SEED,
    Scale,
)
from benchmarks.headline.small import SMALL
from benchmarks.headline.speed import speed
from skillweave.weave import AUTO, Weave

BASE, NAMED, ROUTED = "base", "weave, named", "weave, routed"
SHARED = "weave on a multi-task backbone, named"
ADD, SPEED = "one more skill", "speed"
BY_SKILL = (SPECIALIST, NAMED, LORA)
"""The arms that have a cell for each skill."""
SCALES: dict[str, Scale] = {each.name: each for each in (MICRO, SMALL, MICRO_LONG, QUICK)}


@dataclass(frozen=True)
class Cell:
    """One measurement. ``skill`` is empty if it covers all; ``rate`` 0 stands for the tuned one."""

    scale: str
    seed: int
    arm: str
    skill: str = ""
    rate: float = 0.0
    split: str = TEST


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the figures of a cell: scores by skill, and what its arm adds to them."""
    began = time.monotonic()
    work = {NAMED: _named, ROUTED: _routed, SHARED: _shared, ADD: _add, SPEED: _speed, **dict.fromkeys(MERGES, _merged)}
    found = work.get(cell.arm, _model)(cell, lab(cell.scale, cell.seed, folder), folder)
    about = {"seed": cell.seed, "arm": cell.arm, "skill": cell.skill, "rate": cell.rate, "split": cell.split}
    return {**about, **found, "seconds": round(time.monotonic() - began, 1)}


@functools.lru_cache(maxsize=2)
def lab(scale: str, seed: int, folder: Path) -> Lab:
    """Return the things of a scale and seed."""
    return Lab(SCALES[scale], seed, folder / f"seed-{seed}")


# -- tuning ------------------------------------------------------------------------------------------------------------


def grid(scale: str, arm: str) -> list[Cell]:
    """Return the cells in which the rate of an arm is tuned; none if there is one rate alone."""
    rates = SCALES[scale].rates[arm]
    if len(rates) == 1:
        return []
    skills = {SPECIALIST: SCALES[scale].skills, LORA: SCALES[scale].lora_tuned_on}.get(arm, ("",))
    return [Cell(scale, TUNING_SEED, arm, skill, rate, TUNE) for rate in rates for skill in skills]


def tuned(scale: str, arm: str, folder: Path) -> float:
    """Return the rate with the best mean score on the tuning seed, from the grid of the arm."""
    plans = grid(scale, arm)
    if not plans:
        return SCALES[scale].rates[arm][0]
    found = run_all(plans, functools.partial(measure, folder=folder), folder / "cells", jobs=1)
    by_rate: dict[float, list[float]] = {}
    for plan, result in zip(plans, found, strict=True):
        by_rate.setdefault(plan.rate, []).extend(result["scores"].values())
    return max(by_rate, key=lambda rate: statistics.fmean(by_rate[rate]))


# -- the arms ----------------------------------------------------------------------------------------------------------


def _model(cell: Cell, own: Lab, folder: Path) -> dict[str, Any]:
    """Score a single model: the base, a specialist, a LoRA, the multi-task model or the monolith."""
    scale = own.scale
    skills = [cell.skill] if cell.skill else list(scale.skills)
    if cell.arm == BASE:
        weave = Weave.of(own.base)
        return {**scored(weave, own, skills, cell.split), **hard_scores(weave, own, cell)}
    rate = cell.rate or tuned(cell.scale, cell.arm, folder)
    if cell.arm == MONOLITH:
        base = opened(str(scale.monolith()))
        delta = own.trained(base, scale.skills, rate, f"monolith-{rate:g}")
        with added(base, delta) as weave:
            return {**scored(weave, own, skills, cell.split), **hard_scores(weave, own, cell), "used_rate": rate}
    more: dict[str, Any] = {"used_rate": rate}
    if cell.arm == SPECIALIST:
        delta = own.specialist(cell.skill, rate)
        more |= {"bytes": delta.bf16_nbytes}
    elif cell.arm == LORA:
        specialist_rate = tuned(cell.scale, SPECIALIST, folder)
        rank = own.rank_of(cell.skill, specialist_rate)
        delta = own.lora(cell.skill, rate, rank)
        more |= {"rank": rank, "bytes": delta.nbytes // 2}  # trained in float32, counted in bf16
    else:
        delta = own.multi_task(rate)
    with added(own.base, delta) as weave:
        if cell.arm == MULTI:
            more |= hard_scores(weave, own, cell)
        return {**scored(weave, own, skills, cell.split), **more}


def _named(cell: Cell, own: Lab, folder: Path) -> dict[str, Any]:
    """Score a pack on its own skill, which the caller names."""
    pack = own.pack(cell.skill, tuned(cell.scale, SPECIALIST, folder))
    weave = Weave.of(own.base, {cell.skill: pack})
    left_out = pack.card.codec.measured["left_out_share"]
    return {**scored(weave, own, [cell.skill], cell.split, cell.skill), "bytes": pack.nbytes, "left_out": left_out}


def _shared(cell: Cell, own: Lab, folder: Path) -> dict[str, Any]:
    """Score packs on a backbone that has learnt half of all examples together; each pack has learnt its other half."""
    backbone = own.shared_backbone(tuned(cell.scale, MULTI, folder))
    rate = tuned(cell.scale, SPECIALIST, folder)
    found: dict[str, float] = {}
    sizes = []
    for skill in own.scale.skills:
        pack = own.pack_on_backbone(backbone, skill, rate)
        found |= scored(Weave.of(backbone, {skill: pack}), own, [skill], cell.split, skill)["scores"]
        sizes.append(pack.nbytes)
    plain = scored(Weave.of(backbone), own, own.scale.skills, cell.split)["scores"]
    return {"scores": found, "bytes": statistics.fmean(sizes), "backbone_scores": plain}


def _routed(cell: Cell, own: Lab, folder: Path) -> dict[str, Any]:
    """Score the weave with its router, on the skills and on the prompts that are hard to route."""
    weave = own.weave(tuned(cell.scale, SPECIALIST, folder))
    found: dict[str, float] = {}
    asked_all: list[Question] = []
    given_all = []
    for skill in own.scale.skills:
        asked = own.scale.asked(skill, cell.seed, cell.split)
        given = replies(weave, asked, [AUTO] * len(asked), own.scale.tokens)
        found[skill] = _mean(scores(asked, given))
        asked_all, given_all = asked_all + asked, given_all + given
    kinds = {OWN: {**routing(asked_all, given_all), "score": _mean(scores(asked_all, given_all))}}
    for kind in HARD:
        asked = own.scale.asked_hard(kind, cell.seed)
        given = replies(weave, asked, [AUTO] * len(asked), own.scale.tokens)
        named = replies(
            weave, asked, [question.skills[0] if question.skills else None for question in asked], own.scale.tokens
        )
        kinds[kind] = {**routing(asked, given), "prompts": len(asked)}
        if kind != EVERYDAY or own.scale.judges_everyday:
            kinds[kind] |= {"score": _mean(scores(asked, given)), "named_score": _mean(scores(asked, named))}
    assert weave.router is not None
    return {"scores": found, "routing": kinds, "router": weave.router.figures, "threshold": weave.router.threshold}


def _merged(cell: Cell, own: Lab, folder: Path) -> dict[str, Any]:
    """Score a merge of the specialists of a rate, whose factor is chosen on prompts that are not tested."""
    rate = cell.rate or tuned(cell.scale, cell.arm, folder)
    deltas = [own.specialist(skill, rate) for skill in own.scale.skills]
    tried: dict[float, float] = {}
    for factor in own.scale.factors[cell.arm]:
        with added(own.base, own.merged(cell.arm, deltas, factor)) as weave:
            found = scored(weave, own, own.scale.skills, TUNE)["scores"]
        tried[factor] = statistics.fmean(found.values())
    best = max(tried, key=lambda factor: tried[factor])
    with added(own.base, own.merged(cell.arm, deltas, best)) as weave:
        more = {"factor": best, "used_rate": rate, "tried": {f"{factor:g}": score for factor, score in tried.items()}}
        return {**scored(weave, own, own.scale.skills, cell.split), **more}


def _add(cell: Cell, own: Lab, folder: Path) -> dict[str, Any]:
    rates = {arm: tuned(cell.scale, arm, folder) for arm in (SPECIALIST, MULTI)}
    return {"scores": {}, **added_skill(own, rates[SPECIALIST], rates[MULTI])}


def _speed(cell: Cell, own: Lab, folder: Path) -> dict[str, Any]:
    return {"scores": {}, **speed(own, tuned(cell.scale, SPECIALIST, folder))}


# -- scores ------------------------------------------------------------------------------------------------------------


def scored(weave: Weave, own: Lab, skills: Sequence[str], split: str, pack: str | None = None) -> dict[str, Any]:
    """Return the mean score of each skill; ``pack`` answers all prompts (None: the model as it is)."""
    found = {}
    for skill in skills:
        asked = own.scale.asked(skill, own.seed, split)
        found[skill] = _mean(scores(asked, replies(weave, asked, [pack] * len(asked), own.scale.tokens)))
    return {"scores": found}


def hard_scores(weave: Weave, own: Lab, cell: Cell) -> dict[str, Any]:
    """Return the scores of one model on the hard prompts, which it need not route."""
    if cell.split != TEST:
        return {}
    found = {}
    for kind in HARD if own.scale.judges_everyday else HARD[:-1]:
        asked = own.scale.asked_hard(kind, own.seed)
        found[kind] = {"score": _mean(scores(asked, replies(weave, asked, [None] * len(asked), own.scale.tokens)))}
    return {"routing": found}


def _mean(values: Sequence[float | None]) -> float:
    return statistics.fmean(value for value in values if value is not None)
