"""Compare what SkillZip and other codecs keep of a fine-tune at equal bytes, from 1/16 to 1/1024 of the bf16 delta.

Claims: at every size, SkillZip is closer to the specialist than the best other codec. Of a short fine-tune it keeps 99%
of the gain at 1/256 and 95% at 1/1024; of a long one 99% at 1/64, 97% at 1/128, 95% at 1/256 and 90% at 1/512.

Every skill is a short fine-tune (its linear layers) and a long one (ten times the steps, all parameters, embeddings and
norms included). A pack is measured in two ways, both on test prompts, which no fine-tune, calibration or refinement has
seen:

- KL(specialist || base with the pack), in nats a token, along answers that the specialist wrote itself. Of each of its
  distributions the 256 likeliest tokens are compared one by one, and all others as one event.
- The retained gain: (pack - base) / (specialist - base), of scores of greedy answers.

All run through the arithmetic that is served; base and specialist are in float32. Bytes are those of all files of a
pack. A codec that cannot write so small a pack is shown once, at its smallest. Seeds have calibration prompts of their
own, and another rotation; codecs that read neither have one seed. Lines below the ratios show SkillZip with one part
changed.

small: SmolLM2. micro, gpt2, qwen3: a model of about a million parameters that is trained from nothing, of the Llama,
the GPT-2 (weights as (in, out), q, k and v in one layer) and the Qwen3 family.

Every cell is kept in runs/zip-quality, with the fine-tunes, what they said, and the packs, so that a stopped run
resumes. The cells that say most come first; Ctrl-C shows those that are there, and so does `--show`. After a change of
a codec, delete `cells` and `packs` there; the rest may stay.

    python -m benchmarks.zip_quality                                     SmolLM2: a day on two cores
    python -m benchmarks.zip_quality --skills json_calls --lengths short --kl-only
    python -m benchmarks.zip_quality --lengths long                      results in zip_quality.long-small
    python -m benchmarks.zip_quality --scale micro                       minutes
    python -m benchmarks.zip_quality --quick                             a base that knows nothing, a few cells
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.common.runs import as_far_as_measured
from benchmarks.zip_quality.codecs import (
    ABLATIONS,
    ALL,
    CODECS,
    PLAIN,
    RATIOS,
    SKILLZIP,
    SMALLEST,
    SPECIALIST,
    UNREFINED,
)
from benchmarks.zip_quality.measure import KL, SCORE, Cell, measure
from benchmarks.zip_quality.show import claims, joined, plot, table
from benchmarks.zip_quality.skills import LENGTHS, LONG, SCALES, SEEDS, SHORT, recipe, scale_named
from skillweave.errors import UserError

NAME = "zip_quality"
RUNS = Path("runs/zip-quality")


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    options = _options(argv)
    scale = f"quick-{options.scale}" if options.quick else options.scale
    plans = cells(scale, options)
    # Long fine-tunes take a day or more on SmolLM2, so they are measured apart.
    name = NAME if SHORT in options.lengths else f"{NAME}.{LONG}"
    record = Record.begin(name, options, argv, seeds=options.seeds, module=NAME)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.quick else options.runs / options.scale
        work = functools.partial(measure, folder=folder)
        found = as_far_as_measured(plans, work, folder / "cells", jobs=options.jobs, show=options.show)
    record.rows = joined(found)
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows), seconds=sum(cell["seconds"] for cell in found))


def cells(scale: str, options: argparse.Namespace) -> list[Cell]:
    """Return all cells that the options ask for, the most telling first.

    KL comes before scores, which take longer, and the first seed before the others. The score is measured for every
    pack of SkillZip, and for the other codecs with the first seed.
    """
    skills = list(options.skills or scale_named(scale).skills)
    fine_tunes = [(skill, length) for length in options.lengths for skill in skills]
    recipes = {group: recipe(scale_named(scale), *group) for group in fine_tunes}
    codecs = [codec for codec in options.codecs if codec in CODECS]
    ablations = [codec for codec in options.codecs if codec in ABLATIONS]

    def made(codecs: Sequence[str], what: str, seeds: Sequence[int], ratios: Sequence[str]) -> list[Cell]:
        return [
            Cell(scale, *group, codec, ratio, seed, what, recipes[group], options.device)
            for seed in seeds
            for ratio in (*ratios, SMALLEST)
            for codec in codecs
            if ratio in ALL[codec].ratios and (ALL[codec].seeded or seed == options.seeds[0])
            for group in fine_tunes
        ]

    first, others = options.seeds[:1], options.seeds[1:]
    ends = [(codec, what) for what in (KL, SCORE) for codec in (PLAIN, SPECIALIST) if what == KL or not options.kl_only]
    listed = [
        Cell(scale, *group, codec, "", 0, what, recipes[group], options.device)
        for codec, what in ends
        for group in fine_tunes
    ]
    listed += made(codecs, KL, first, options.ratios)
    if not options.kl_only:
        ours = [codec for codec in codecs if codec == SKILLZIP]
        listed += made(ours, SCORE, first, options.ratios)
        listed += made([codec for codec in codecs if codec != SKILLZIP], SCORE, first, options.ratios)
    listed += made(ablations, KL, first, RATIOS)
    listed += made([codec for codec in codecs if codec == SKILLZIP], KL, others, options.ratios)
    if not options.kl_only:
        listed += made(ours, SCORE, others, options.ratios)
        listed += made(ablations, SCORE, first, RATIOS)
    return listed


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments(__doc__, list(SCALES))
    parser.add_argument("--skills", nargs="+", metavar="SKILL", help="which skills (default: all of the scale)")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS), help="which fine-tunes")
    parser.add_argument(
        "--codecs", nargs="+", choices=list(ALL), default=list(ALL), metavar="CODEC", help=f"of: {'; '.join(ALL)}"
    )
    parser.add_argument(
        "--ratios", nargs="+", choices=RATIOS, default=list(RATIOS), metavar="RATIO", help="which sizes"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, choices=range(SEEDS), default=list(range(SEEDS)), help="which calibrations"
    )
    parser.add_argument("--kl-only", action="store_true", help="measure no scores")
    parser.add_argument("--jobs", type=positive, default=1, help="processes at once (default: %(default)s)")
    parser.add_argument("--device", help="where to compute (default: the first GPU, or the CPU)")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help="what is kept (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="measure nothing: show the cells that are there")
    options = parser.parse_args(argv)
    if options.quick:
        options.lengths, options.ratios, options.seeds = [SHORT], ["1/16"], [0]
        options.codecs, options.skills = [SKILLZIP, UNREFINED, "svd", "bitdelta"], None
    unknown = [skill for skill in options.skills or [] if skill not in SCALES[options.scale].skills]
    if unknown:
        known = ", ".join(SCALES[options.scale].skills)
        raise UserError(f"no skill '{unknown[0]}' at the scale {options.scale}; known: {known}")
    return options


if __name__ == "__main__":
    run(main)
