"""Look for the conditions under which expert prefixes help more than SFT -> RL: few traces, in words of their own.

Claim: with 16 expert traces or fewer, where Zero-RL stays below 5%, E3-TIR is at least 5 points ahead of SFT -> RL.

One micro model is trained from scratch on conversations of wanderers, who search in the right form and mostly in vain.
Every seed is another world of people. Three conditions vary:

* the number of expert traces
* expressibility: the share of the experts' searches in words of their own, a code of random letters that only the
  experts' index knows. Their results are the usual ones. A policy cannot learn the codes, and they find nothing for it.
* coverage: traces for questions of two hops only; the prompts of RL and of the test have two or three

Every arm with RL plays the same number of conversations (BREAD-like: at most as many). Each arm is tuned on other
seeds, over rates of RL and, where it has supervised training, over its rates and epochs, once with hidden words and
once without. Scores are of greedy answers to 200 test prompts. Intervals are Student's t over seeds, of differences
within a seed.

Finished runs are kept, so that a stopped benchmark resumes. Delete their folder after a change of the code.

    python -m benchmarks.e3tir.scarce             about an hour on one core
    python -m benchmarks.e3tir.scarce --show      the table of what is measured so far
    python -m benchmarks.e3tir.scarce --quick     two arms on a base that knows little
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
from benchmarks.e3tir.scarce_arms import ARMS, MAIN, NO_EXPERT, SFT_RL, USES_SFT, ZERO, Cell, trained
from benchmarks.e3tir.scarce_show import condition_of, name_of, plot, table

NAME = "e3tir.scarce"
FILES = "e3tir-scarce"
"""The beginning of the names of the results."""
E3 = MAIN
RATES = (1e-3, 3e-3)
SFTS = ((3e-4, 3), (1e-3, 10), (3e-3, 10))
TUNING_SEEDS = (11,)
TRACES = (4, 16, 64, 256)
CURVES = (SFT_RL, E3)
GOAL = 5


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro"])
    parser.add_argument("--seeds", type=positive, default=5, help="seeds (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/e3tir-scarce"), help="finished runs (%(default)s)")
    parser.add_argument("--show", action="store_true", help="show what is measured; run nothing")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            record = Record.begin(NAME, options, argv, [1, 2])
            cells = [Cell(arm, seed, 4, batches=2, base_steps=20) for arm in (SFT_RL, E3) for seed in record.seeds]
            _finish(record, as_far_as_measured(cells, measured, Path(folder)))
        return
    record = Record.begin(NAME, options, argv, range(1, 1 + options.seeds))
    tried = as_far_as_measured(tuning_cells(), measured, options.runs, show=options.show)
    found = as_far_as_measured(cells_of(record.seeds, tried), measured, options.runs, show=options.show)
    _finish(record, [*found, *tried])


def measured(cell: Cell) -> dict[str, Any]:
    """The row of a cell: what was trained and what came out."""
    return {**asdict(cell), **trained(cell)}


def _finish(record: Record, rows: list[dict[str, Any]]) -> None:
    record.name, record.rows = FILES, rows
    final = [row for row in rows if row["seed"] in record.seeds]
    record.claims = claims(final)
    record.finish(table(final), plot(final), sum(row["seconds"] for row in rows))


# -- the cells -------------------------------------------------------------------------------------------------------


def tuning_cells() -> list[Cell]:
    """The grid: every arm with 16 traces, with hidden words and without, on seeds that the results do not use."""
    return [
        Cell(arm, seed, hidden=hidden, rate=rate, sft=sft)
        for hidden in (1.0, 0.0)
        for arm in ARMS
        for rate in RATES
        for sft in (SFTS if arm in USES_SFT else SFTS[1:2])
        for seed in TUNING_SEEDS
        if hidden == 1 or arm not in NO_EXPERT
    ]


def cells_of(seeds: Sequence[int], tried: Sequence[dict[str, Any]]) -> list[Cell]:
    """The cells of the result, the most important ones first, each with the settings that its arm was tuned to."""
    main = [Cell(arm, seed) for seed in seeds for arm in (*CURVES, ZERO)]
    main += [Cell(arm, seed) for seed in seeds for arm in ARMS]
    curves = [Cell(arm, seed, hidden=0.0) for seed in seeds for arm in CURVES]
    curves += [
        Cell(arm, seed, traces, hidden)
        for traces in TRACES
        for hidden in (1.0, 0.0)
        for seed in seeds
        for arm in CURVES
    ]
    curves += [Cell(arm, seed, hidden=0.5) for seed in seeds for arm in CURVES]
    covered = [Cell(arm, seed, hidden=0.0, least=2, longest=2) for seed in seeds for arm in (*CURVES, ZERO)]
    unique = dict.fromkeys([*main, *curves, *covered])
    return [tuned(cell, tried) for cell in unique]


def tuned(cell: Cell, tried: Sequence[dict[str, Any]]) -> Cell:
    """The cell with the rates and epochs at which its arm had the best mean score in the grid.

    Cells with half of the words hidden or more take the settings of hidden words.
    """
    hidden = 1.0 if cell.hidden >= 0.5 or cell.arm in NO_EXPERT else 0.0
    scores: dict[tuple[Any, ...], list[float]] = {}
    for row in tried:
        if (row["arm"], row["hidden"]) == (cell.arm, hidden):
            scores.setdefault((row["rate"], tuple(row["sft"])), []).append(row["score"])
    rate, sft = max(scores, key=lambda key: fmean(scores[key]))
    return replace(cell, rate=rate, sft=sft)


# -- the claims ------------------------------------------------------------------------------------------------------


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Claims: E3-TIR against SFT -> RL in every condition, and against every other arm in the main one, in points."""
    made = []
    for condition in dict.fromkeys(map(condition_of, rows)):
        here = [row for row in rows if condition_of(row) == condition]
        main = condition == condition_of({**asdict(Cell(E3, 0))})
        for other in ARMS if main else (SFT_RL,):
            values = differences(here, E3, other)
            if other != E3 and len(values) > 1:
                goal = f"> {GOAL}" if other == SFT_RL and main else "> 0"
                made.append(judged(f"{name_of(condition)}: {E3} less {other}, points", *student(values), goal))
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
