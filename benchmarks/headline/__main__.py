"""Compare one small base with packs to one model for everything, at equal training tokens.

Arms: a specialist for each skill (upper bar); the weave, whose packs of 1/64 are named by the caller or chosen by the
router; one multi-task fine-tune of the same base on all examples together; three merges of the specialists (PEFT's task
arithmetic, TIES and DARE); a LoRA for each skill, trained directly, of at least the pack's bytes; and a model of twice
the size that is trained as the multi-task model is. One more way to weave spends the same tokens in two halves: a
multi-task fine-tune, merged into the backbone, and then the specialists on it.

Claims: the weave is within 1 point of the specialists' mean; at least 3 points ahead of the multi-task model and of
every merge; ahead of the LoRAs; smaller and faster than the monolith, and ahead of it. A skill that is added later
changes no answer and no logit of the others. Intervals are Student's t over seeds, of differences within a seed.

Every example is read once by every way to train. Rates are chosen on validation prompts of a seed of their own, the
factor of a merge on validation prompts of its own seed. Prompts that are hard to route are counted apart: skills that
look alike, words that nothing was trained on, two skills in one prompt, and everyday prompts.

micro: a model of 176,000 parameters, trained from nothing on a mixture, and six operations on strings of letters.
micro-long: the same with three times the examples.
small: SmolLM2 with three built-in tasks, two of reasoning-gym and an agent with a calculator; it has no monolith,
because no package has the weights of one: its time and bytes are those of random weights.

Every cell is kept in runs/headline, with fine-tunes and packs, so that a stopped run resumes. The first seed comes
first; Ctrl-C shows what is there, and so does `--show`. After a change of the code, delete that folder.

    python -m benchmarks.headline                  micro: minutes
    python -m benchmarks.headline --scale small    SmolLM2: an hour or more for each seed, on two cores
    python -m benchmarks.headline --quick          a base that knows nothing, two skills
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.common.runs import as_far_as_measured
from benchmarks.headline.measure import ADD, BASE, BY_SKILL, NAMED, ROUTED, SCALES, SHARED, SPEED, Cell, grid, measure
from benchmarks.headline.scale import LORA, MERGES, MONOLITH, MULTI, SPECIALIST, TEST
from benchmarks.headline.show import claims, plot, table

NAME = "headline"
RUNS = Path("runs/headline")
ARMS = (SPECIALIST, NAMED, ROUTED, MULTI, LORA, *MERGES, BASE, ADD, SPEED, MONOLITH, SHARED)
"""In the order in which they are measured, for each seed."""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    options = _options(argv)
    scale = "quick" if options.quick else options.scale
    plans = cells(scale, options.seeds, options.arms)
    record = Record.begin(NAME, options, argv, seeds=range(options.seeds))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.quick else options.runs / scale
        work = functools.partial(measure, folder=folder)
        record.rows = as_far_as_measured(plans, work, folder / "cells", show=options.show)
    record.claims = claims(record.rows)
    record.finish(
        table(record.rows),
        plot(record.rows),
        seconds=sum(row["seconds"] for row in record.rows if row["split"] == TEST),
    )


def cells(scale: str, seeds: int, arms: Sequence[str]) -> list[Cell]:
    """Return all cells, those of the first seed first; those in which rates are tuned are made on the way."""
    chosen = [arm for arm in ARMS if arm in arms and (arm != MONOLITH or SCALES[scale].rates.get(MONOLITH))]
    listed = [
        Cell(scale, seed, arm, skill)
        for seed in range(seeds)
        for arm in chosen
        for skill in (SCALES[scale].skills if arm in BY_SKILL else ("",))
    ]
    return listed + [cell for arm in chosen if arm in SCALES[scale].rates for cell in grid(scale, arm)]


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments(__doc__, ["micro", "small", "micro-long"])
    parser.add_argument("--seeds", type=positive, help="other examples (default: 5; of other scales than micro 3)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=f"of: {ARMS}")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="what is kept (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="measure nothing: show what is there")
    options = parser.parse_args(argv)
    options.seeds = options.seeds or (5 if options.scale == "micro" else 3)
    if options.quick:
        options.seeds = 1
    return options


if __name__ == "__main__":
    run(main)
