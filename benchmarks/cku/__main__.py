"""Compare forget losses with frozen neurons: no mask, control masks, every scorer, and sign agreement.

Claims: a model whose useful neurons are frozen keeps more of what should stay than a model without a mask, and more
than one with as many neurons frozen at random. What is forgotten stays forgotten after fine-tuning and after rounding
to four bits.

micro: each seed has a world of invented people and substances. A micro model of four layers is trained from scratch on
this world and on a skill (sorting digits) until it knows all facts by heart. Then it unlearns a quarter of the people
and one substance. Unlearning stops when greedy decoding brings back no more of them than of facts that were never
taught (the goal, measured on the model itself; at most 300 steps). "Kept" is the probability of the answers, as a share
of what it was before. It is measured on the facts in the retain term, and "beside" on facts that should stay and that
no term saw: held-out facts of the retain files, and questions in the words of the forget set about people who stay.
The probes are 20 steps of fine-tuning on half of the forget set (the other half is then asked), 20 steps on ten
examples of another skill, and weights rounded to eight and four bits. "Back" is the share of the lost extraction
strength that returns.

The last comparison is exploratory. It was added when sign agreement had not reached the goal in 300 steps: one loss,
all masks at one small rate, up to 900 steps.

Learning rate and mu are tuned for each loss three times: without a mask, with frozen neurons (by `contrast`; the
controls and the other scorers use the same values), and with sign agreement. Tuning uses seeds of its own and takes the
setting that keeps most of the held-out facts among those that reach the goal on every seed. Intervals are Student's t
over seeds, of differences within a seed.

small: SmolLM2 learns the corpus in sentences and unlearns it. The columns are the same, with perplexity and two tasks.

Finished runs are kept in runs/bench, so that a stopped benchmark resumes. Delete that folder after a change of the
code.

    python -m benchmarks.cku                          micro: an hour on two cores
    python -m benchmarks.cku --scale small            SmolLM2: an hour on two cores
    python -m benchmarks.cku --quick                  a model that knows little, two arms
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cku import small
from benchmarks.cku.arms import (
    BOTH,
    GA,
    GA_KL,
    GRADDIFF,
    LOSSES,
    MASKS,
    NO_MASK,
    RANDOM,
    RMU,
    SCORERS,
    SIGN,
    Plan,
    beside,
    reached,
    select,
    taught,
    unlearnt,
)
from benchmarks.cku.show import plot, table
from benchmarks.common.record import Claim, Record, arguments, judged, positive, run, student
from benchmarks.common.runs import run_all

NAME = "cku"
RUNS = Path("runs/bench")
RATES = (3e-4, 1e-3, 3e-3)
MUS = (5.0, 20.0)
TUNING_SEEDS = (100, 101)
UNSIGNED = (GA, RMU)
"""Losses that have no retain gradient to agree with. RMU's is exactly zero at the start and stays zero."""
TUNED_ON = {NO_MASK: NO_MASK, SIGN: SIGN, BOTH: SIGN}
"""Mask -> the mask whose tuned settings it uses; every other mask uses those of ``contrast``."""
TUNING = "tuning"
ARMS = "arms"
RATIO = "ratio"
LAYERS = "layers"
SLOW = "small steps"
RATIOS = (0.5, 0.95)
CHOSEN_LAYERS = ((0,), (1,), (2,), (3,))
SWEPT = GA_KL
SLOWLY = (3e-4, 5.0)
SLOW_STEPS = 900
"""Maximum number of steps of the exploratory comparison."""
SETTING = tuple[float, float]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro", "small"])
    parser.add_argument("--seeds", type=positive, help="seeds that count (default: 5, small: 1)")
    parser.add_argument("--jobs", type=positive, default=2, help="micro runs at once (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _quick(options, argv, Path(folder))
    elif options.scale == "small":
        small.main(options, argv, RUNS / "cku-small")
    else:
        _micro(options, argv, RUNS / "cku-micro")


def _micro(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    record = Record.begin(NAME, options, argv, range(1, 1 + (options.seeds or 5)))
    run_all(worlds([*TUNING_SEEDS, *record.seeds]), teach, kept, jobs=options.jobs)
    grid = grid_plans()
    tried = rows(grid, run_all(grid, unlearnt, kept, jobs=options.jobs))
    plans = arm_plans(record.seeds, tried) + sweep_plans(record.seeds, tried)
    record.rows = rows(plans, run_all(plans, unlearnt, kept, jobs=options.jobs))
    record.claims = claims(record.rows)
    shown = table(record.rows), plot(record.rows)
    record.rows += tried
    record.finish(*shown, sum(row["seconds"] for row in record.rows) / options.jobs)


def _quick(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    record = Record.begin(NAME, options, argv, [1, 2])
    plans = [
        Plan(ARMS, GRADDIFF, mask, seed, 1e-3, 5.0, steps=5, taught=20)
        for mask in (NO_MASK, "contrast")
        for seed in record.seeds
    ]
    record.rows = rows(plans, run_all(plans, unlearnt, kept, jobs=1))
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows))


# -- the plans -------------------------------------------------------------------------------------------------------


def worlds(seeds: Sequence[int]) -> list[Plan]:
    """One plan for each seed, whose models are trained first: all its runs start from them or compare with them."""
    return [Plan("taught", GA, NO_MASK, seed, 0.0, 0.0, probes=seed not in TUNING_SEEDS) for seed in seeds]


def teach(plan: Plan) -> dict[str, Any]:
    """Train the models of a seed: the one that unlearns and, if there are probes, the reference."""
    import torch

    torch.set_num_threads(1)
    taught(plan.seed, plan.taught)
    if plan.probes:
        taught(plan.seed, plan.taught, knows_forget=False)
    return {}


def grid_plans() -> list[Plan]:
    """Every learning rate and mu of every loss with the three ways to mask, on the tuning seeds."""
    return [
        Plan(TUNING, loss, mask, seed, rate, mu, probes=False)
        for loss in LOSSES
        for mask in (NO_MASK, "contrast", SIGN)
        for rate in RATES
        for mu in (MUS[:1] if loss == GA else MUS)
        for seed in TUNING_SEEDS
        if not (loss in UNSIGNED and mask == SIGN)
    ]


def arm_plans(seeds: Sequence[int], tried: Sequence[dict[str, Any]]) -> list[Plan]:
    """Every loss with every mask."""
    return [
        Plan(ARMS, loss, mask, seed, *chosen(tried, loss, TUNED_ON.get(mask, "contrast")))
        for loss in LOSSES
        for mask in MASKS
        for seed in seeds
        if not (loss in UNSIGNED and mask in (SIGN, BOTH))
    ]


def sweep_plans(seeds: Sequence[int], tried: Sequence[dict[str, Any]]) -> list[Plan]:
    """One loss with other ratios, useful neurons against random ones; in other layers; with small steps."""
    start = Plan(RATIO, SWEPT, "contrast", 0, *chosen(tried, SWEPT, "contrast"))
    ratios = [
        replace(start, mask=mask, ratio=ratio, seed=seed)
        for mask in (RANDOM, "contrast")
        for ratio in RATIOS
        for seed in seeds
    ]
    layers = [replace(start, comparison=LAYERS, layers=one, seed=seed) for one in CHOSEN_LAYERS for seed in seeds]
    slow = [
        Plan(SLOW, SWEPT, mask, seed, *SLOWLY, steps=SLOW_STEPS)
        for mask in (NO_MASK, RANDOM, "fisher", "contrast", SIGN, BOTH)
        for seed in seeds
    ]
    return ratios + layers + slow


def chosen(tried: Sequence[dict[str, Any]], loss: str, mask: str) -> SETTING:
    """The learning rate and mu that keep most of the held-out facts on the tuning seeds, among those that forget.

    If no setting forgets on every seed, it is the one that forgets most.
    """
    found: dict[SETTING, list[dict[str, Any]]] = {}
    for row in select(tried, loss=loss, mask=mask):
        found.setdefault((row["rate"], row["mu"]), []).append(row)
    forgets = {setting: group for setting, group in found.items() if all(map(reached, group))}
    if not forgets:
        return min(found, key=lambda setting: fmean(row["forget"] for row in found[setting]))
    return max(forgets, key=lambda setting: fmean(row["held_out"] for row in forgets[setting]))


def rows(plans: Sequence[Plan], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the result."""
    return [{**asdict(plan), **result} for plan, result in zip(plans, results, strict=True)]


# -- the claims ------------------------------------------------------------------------------------------------------


def claims(found: Sequence[dict[str, Any]]) -> list[Claim]:
    """Claims: what is kept at full forgetting (against no mask and a random mask), and what relearning brings back."""
    arms, slow = select(found, comparison=ARMS), select(found, comparison=SLOW)
    made = [
        judged(
            f"{loss}, {mask}: kept of retain, % (the goal reached on {sum(map(reached, group))} of {len(group)} seeds)",
            *student([100 * row["retain"] for row in group]),
            goal,
        )
        for loss in LOSSES
        for mask, goal in ((NO_MASK, "< 99" if loss == GA else ">= 99"), ("contrast", ">= 99"), (SIGN, ">= 99"))
        if (group := select(arms, loss=loss, mask=mask))
    ]
    pairs = [(mask, other) for other in (RANDOM, NO_MASK) for mask in (*SCORERS, SIGN, BOTH)]
    for where, rows_ in (("mean over losses with a retain term", arms), (f"{SWEPT}, small steps", slow)):
        for name, value, sign in (("kept beside", beside, 1), ("brought back by relearning", _relearnt, -1)):
            for mask, other in pairs:
                values, runs = over_losses(rows_, mask, other, value)
                if values:
                    one, than = (mask, other) if sign > 0 else (other, mask)
                    claim = f"{where}: {name}, {one} less {than}, points ({runs} pairs of runs, {len(values)} seeds)"
                    made.append(judged(claim, *student([sign * each for each in values]), "> 0"))
    return made


def _relearnt(row: dict[str, Any]) -> float:
    return 100 * (row["relearnt"] or 0.0)


def over_losses(found: Sequence[dict[str, Any]], one: str, other: str, value: Any) -> tuple[list[float], int]:
    """A figure with one mask minus the same figure with another, for each seed; and how many pairs of runs it rests on.

    Each value is the mean over the losses that have a retain term. Only pairs in which both runs forgot count: a model
    that forgets less also keeps more, which is no merit.
    """
    differences: dict[int, list[float]] = {}
    for loss in LOSSES:
        of = {
            mask: {row["seed"]: value(row) for row in select(found, loss=loss, mask=mask) if reached(row)}
            for mask in (one, other)
        }
        for seed in of[one].keys() & of[other].keys() if loss != GA else ():
            differences.setdefault(seed, []).append(of[one][seed] - of[other][seed])
    return [fmean(differences[seed]) for seed in sorted(differences)], sum(map(len, differences.values()))


if __name__ == "__main__":
    run(main)
