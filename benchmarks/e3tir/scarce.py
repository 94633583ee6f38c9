"""Look for where expert prefixes help more than SFT -> RL: few traces, or ways that nobody can imitate.

Claim: with 16 expert traces, where Zero-RL stays below 5%, E3-TIR is at least 5 points ahead of SFT -> RL.

One micro model is trained from scratch on conversations of wanderers about chains of sums. They call the calculator in
the right form, but nearly always begin with the first number of the prompt again, not with the last result. The task is
chains of four sums. Four conditions vary:

* the number of expert traces
* expressibility: the share of the experts' calls that are hidden. In a hidden call a number from a memory of the
  experts' own stands for the last result, and the calculator knows what it stands for. Its result is the usual one. A
  policy cannot predict the number, and gets something wrong for it.
* the number of batches: in half of them, RL alone has hardly begun
* coverage: traces for chains of two sums only, while the prompts of RL and of the test have two to four

Every arm with RL plays the same number of conversations (BREAD-like: at most as many). Each arm is tuned on another
seed with hidden calls, over rates of RL and, where it has supervised training, over its rates and epochs; SFT -> RL
also without hidden calls. The grid chooses between the variants of E3-TIR. Scores are of greedy answers to 200 test
prompts. Intervals are Student's t over seeds, of differences within a seed. The conditions beside the main one have
three seeds.

small: SmolLM2, whose traces have two sums and whose prompts have up to four
(:mod:`~benchmarks.e3tir.scarce_small`): five arms, supervised training of three lengths, one rate.

Finished runs are kept, so that a stopped benchmark resumes. Delete their folder after a change of the code.

    python -m benchmarks.e3tir.scarce                  20 minutes on one free core
    python -m benchmarks.e3tir.scarce --scale small    SmolLM2: hours on a core
    python -m benchmarks.e3tir.scarce --show           the table of what is measured so far
    python -m benchmarks.e3tir.scarce --quick          two arms on a base that knows little
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.record import Claim, Record, arguments, judged, positive, run, student
from benchmarks.common.runs import as_far_as_measured
from benchmarks.e3tir import scarce_small
from benchmarks.e3tir.scarce_arms import (
    ANNEALED,
    ARMS,
    BATCHES,
    PAPER,
    SFT,
    SFT_RL,
    USES_SFT,
    VARIANTS,
    ZERO,
    Cell,
    trained,
)
from benchmarks.e3tir.scarce_show import condition_of, name_of, plot, table

NAME = "e3tir.scarce"
FILES = "e3tir-scarce"
"""The beginning of the names of the results."""
RATES = (2.5e-4, 5e-4)
SFTS = ((3e-4, 3), (1e-3, 10))
"""Learning rates and epochs of supervised training."""
TUNING_SEEDS = (11,)
CURVE_SEEDS = 3
"""The first seeds, with which the conditions beside the main one are measured."""
HALF = BATCHES // 2
GOAL = 5


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro", "small"])
    parser.add_argument("--seeds", type=positive, help="seeds (default: 5, small: 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/e3tir-scarce"), help="finished runs (%(default)s)")
    parser.add_argument("--show", action="store_true", help="show what is measured; run nothing")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            record = Record.begin(FILES, options, argv, [1], module=NAME)
            cells = [Cell(arm, 1, 4, batches=2, base_steps=10) for arm in (SFT_RL, PAPER)]
            _finish(record, as_far_as_measured(cells, measured, Path(folder)), PAPER)
        return
    if options.scale == "small":
        scarce_small.main(options, argv, options.runs / "small")
        return
    record = Record.begin(FILES, options, argv, range(1, 1 + (options.seeds or 5)), module=NAME)
    tried = as_far_as_measured(tuning_cells(), measured, options.runs, show=options.show)
    cells = cells_of(record.seeds, tried)
    _finish(record, [*as_far_as_measured(cells, measured, options.runs, show=options.show), *tried], best(tried))


def measured(cell: Cell) -> dict[str, Any]:
    """The row of a cell: what was trained and what came out."""
    return {**asdict(cell), **trained(cell)}


def _finish(record: Record, rows: list[dict[str, Any]], ours: str) -> None:
    """``ours`` is the variant of E3-TIR that the claims are about."""
    record.rows = rows
    final = [row for row in rows if row["seed"] in record.seeds]
    record.claims = claims(final, ours)
    record.finish(table(final), plot(final, ours), sum(row["seconds"] for row in rows))


# -- the cells -------------------------------------------------------------------------------------------------------


def tuning_cells() -> list[Cell]:
    """The grid: every arm with 16 traces and hidden calls, and SFT -> RL also with open ones, on another seed."""
    return [
        Cell(arm, seed, hidden=hidden, rate=rate, sft=sft)
        for hidden, arms in ((1.0, ARMS), (0.0, (SFT_RL,)))
        for arm in arms
        for rate in (RATES if arm != SFT else RATES[:1])
        for sft in (SFTS if arm in USES_SFT else SFTS[:1])
        for seed in TUNING_SEEDS
    ]


def best(tried: Sequence[dict[str, Any]]) -> str:
    """The variant of E3-TIR with the best score in the grid."""
    return max(VARIANTS, key=lambda arm: tuned_score(tried, arm, 1.0)[0])


def cells_of(seeds: Sequence[int], tried: Sequence[dict[str, Any]]) -> list[Cell]:
    """The cells of the result, the most important ones first, each with the settings that its arm was tuned to."""
    curves, few = (SFT_RL, best(tried)), seeds[:CURVE_SEEDS]
    cells = [Cell(arm, seed) for seed in seeds for arm in (*curves, ZERO)]
    cells += [Cell(arm, seed, batches=HALF) for seed in seeds for arm in (*curves, ZERO)]
    cells += [Cell(arm, seed, batches=HALF) for seed in seeds for arm in (ANNEALED, PAPER)]
    cells += [Cell(arm, seed) for seed in few for arm in VARIANTS]
    cells += [Cell(arm, seed, 4) for seed in few for arm in curves]
    cells += [Cell(arm, seed, hidden=0.0) for seed in few for arm in curves]
    cells += [Cell(arm, seed, 4, 0.0) for seed in few for arm in curves]
    cells += [Cell(arm, seed) for seed in few for arm in ARMS]
    cells += [Cell(arm, seed, 64, hidden) for hidden in (1.0, 0.0) for seed in few for arm in curves]
    cells += [Cell(arm, seed, hidden=0.5) for seed in few for arm in curves]
    cells += [Cell(arm, seed, hidden=0.0, least=2, longest=2) for seed in few for arm in (*curves, ZERO)]
    cells += [Cell(arm, seed, 256, hidden) for hidden in (1.0, 0.0) for seed in few for arm in curves]
    return [tuned(cell, tried) for cell in dict.fromkeys(cells)]


def tuned(cell: Cell, tried: Sequence[dict[str, Any]]) -> Cell:
    """The cell with the rates and epochs at which its arm had the best mean score in the grid.

    SFT -> RL without hidden calls has its own; all other arms take those of hidden calls.
    """
    hidden = 0.0 if cell.arm == SFT_RL and cell.hidden < 0.5 else 1.0
    _, (rate, sft) = tuned_score(tried, cell.arm, hidden)
    return replace(cell, rate=rate, sft=sft)


def tuned_score(tried: Sequence[dict[str, Any]], arm: str, hidden: float) -> tuple[float, tuple[float, Any]]:
    """An arm's best mean score in the grid, and its rate of RL and supervised training there.

    An arm that is not in the grid yet has no score, and the first settings.
    """
    scores: dict[tuple[float, Any], list[float]] = {}
    for row in tried:
        if (row["arm"], row["hidden"]) == (arm, hidden):
            scores.setdefault((row["rate"], tuple(row["sft"])), []).append(row["score"])
    if not scores:
        return 0.0, (RATES[0], SFTS[0])
    chosen = max(scores, key=lambda settings: fmean(scores[settings]))
    return fmean(scores[chosen]), chosen


# -- the claims ------------------------------------------------------------------------------------------------------


def claims(rows: Sequence[dict[str, Any]], ours: str) -> list[Claim]:
    """Claims: E3-TIR against SFT -> RL in every condition, and against every other arm in the main one, in points."""
    made = []
    for condition in dict.fromkeys(map(condition_of, rows)):
        here = [row for row in rows if condition_of(row) == condition]
        main = condition in (condition_of(asdict(Cell(ours, 0))), condition_of(asdict(Cell(ours, 0, batches=HALF))))
        for other in ARMS if main else (SFT_RL,):
            values = differences(here, ours, other)
            if other != ours and len(values) > 1:
                goal = f"> {GOAL}" if other == SFT_RL and main else "> 0"
                made.append(judged(f"{name_of(condition)}: {ours} less {other}, points", *student(values), goal))
        zero = [100 * row["score"] for row in here if row["arm"] == ZERO]
        if main and len(zero) > 1:
            made.append(judged(f"{name_of(condition)}: {ZERO}, percent", *student(zero), "< 5"))
    return made


def differences(rows: Sequence[dict[str, Any]], arm: str, other: str) -> list[float]:
    """The points by which an arm is ahead of another one, for each seed that both have."""
    of = {name: {row["seed"]: 100 * row["score"] for row in rows if row["arm"] == name} for name in (arm, other)}
    return [of[arm][seed] - of[other][seed] for seed in sorted(of[arm].keys() & of[other].keys())]


if __name__ == "__main__":
    run(main)
