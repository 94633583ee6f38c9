"""Measure whether a part that several deltas share pays: backbone = base + M, and packs of delta_k - M.

Ways: none; M is the mean, the TIES merge or a tuned multiple of the sum of the deltas, and its own bytes are counted as
free, which is the most that it can be worth; the mean, zipped, with its bytes counted (K + 1 packs share what K had);
and one basis B for each matrix that all packs share, with its bytes.

Claims: at equal bytes, KL(specialist || base + M + pack) is smaller with the shared part than without. Each claim is
about the best way of its kind, which was chosen on the same figures. All packs are SkillZip with default settings, not
refined. What a pack gives back is added to the weights in float32, so the rounding of activations, the same for all
ways, is left out.

micro: a model of a million parameters, with fine-tunes of its linear layers. The tasks differ; or it is one task with
other settings; or the same task with other examples. Seeds are other examples. Intervals are over seeds.
small: the three deltas of a build of the demo. With one seed, ranges are over the skills.

Every way is kept in runs/zip-shared, so that a stopped run resumes; Ctrl-C shows what is there, and so does `--show`.

    python -m benchmarks.zip_shared                                    an hour or two on a core
    python -m benchmarks.zip_shared --scale small --weave runs/demo    after `make demo`
    python -m benchmarks.zip_shared --show                             what is there
    python -m benchmarks.zip_shared --quick                            a base that knows nothing
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.common.runs import as_far_as_measured
from benchmarks.common.skills import DEMO as DEMO_FOLDER
from benchmarks.common.skills import find
from benchmarks.zip_shared.groups import DEMO, SAME, SETTINGS, TASKS
from benchmarks.zip_shared.measure import ARMS, RATIOS, Cell, measure
from benchmarks.zip_shared.show import claims, plot, table

NAME = "zip_shared"
RUNS = Path("runs/zip-shared")
GROUPS = [(TASKS, 3), (SETTINGS, 3), (SAME, 3), (SAME, 8), (SETTINGS, 8), (TASKS, 2), (SETTINGS, 2), (SAME, 2)]
"""The most telling groups first."""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    options = _options(argv)
    plans = cells(options)
    record = Record.begin(NAME, options, argv, seeds=sorted({plan.seed for plan in plans}))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.quick else options.runs / options.scale
        work = functools.partial(measure, folder=folder)
        found = as_far_as_measured(plans, work, folder / "cells", show=options.show)
    record.rows = [row for cell in found for row in cell["rows"]]
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows), seconds=sum(cell["seconds"] for cell in found))


def cells(options: argparse.Namespace) -> list[Cell]:
    """Return all cells, those of the first seed first."""
    ratios = tuple(ratio for ratio in RATIOS if ratio in options.ratios)
    if options.scale == "small" and not options.quick:
        packs = len(find(options.weave).skills)
        groups, seeds, weave = [(DEMO, packs)], [0], str(options.weave)
    else:
        chosen = [(relation, packs) for relation, packs in GROUPS if packs in options.packs]
        groups, seeds, weave = (chosen[2:3] if options.quick else chosen), list(range(options.seeds)), None
    return [
        Cell(relation, packs, seed, arm, ratios, options.prompts, options.quick, weave)
        for seed in seeds
        for relation, packs in groups
        for arm in ARMS
        if arm in options.arms
    ]


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments(__doc__, ["micro", "small"])
    parser.add_argument("--weave", type=Path, default=DEMO_FOLDER, help="the build of scale small (%(default)s)")
    parser.add_argument("--ratios", nargs="+", choices=RATIOS, metavar="RATIO", help=f"of: {', '.join(RATIOS)}")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="WAY", help=f"of: {ARMS}")
    parser.add_argument(
        "--packs", nargs="+", type=int, choices=[2, 3, 8], default=[2, 3, 8], help="how many share (scale micro)"
    )
    parser.add_argument("--seeds", type=positive, default=3, help="other examples (default: %(default)s)")
    parser.add_argument("--prompts", type=positive, help="of each kind (default: 96; of scale small 12)")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="what is kept (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="measure nothing: show what is there")
    options = parser.parse_args(argv)
    small = options.scale == "small"
    options.prompts = options.prompts or (12 if small else 96)
    options.ratios = options.ratios or ["1/32", "1/128", "1/512" if small else "1/256"]
    if options.quick:
        options.ratios, options.packs, options.seeds, options.prompts = ["1/32"], [3], 1, 4
    return options


if __name__ == "__main__":
    run(main)
