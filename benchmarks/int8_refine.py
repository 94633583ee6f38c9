"""Measure what it is worth to refine a pack on the int8 backbone that serves it.

Claim: served on a base whose linear layers are in int8, a pack that was refined on that base is nearer to its
specialist (base + delta, in float32) than a pack of the same bytes that was refined on the base in float32.

Every pack is made and measured as in benchmarks.zip_quality: the same skills, fine-tunes, calibration prompts of each
seed, and test prompts. KL(specialist || base with the pack) is in thousandths of a nat a token, along the specialist's
own answers, through the arithmetic that is served. The interval of the ratio is a bootstrap over test prompts, after
the mean over seeds. What was made is kept in runs/int8-refine, so a stopped run resumes.

micro, gpt2, qwen3: models of about a million parameters, packs of 1/64, and 300 steps without an early end, because 50
steps do not help these small models. small: SmolLM2, packs of 1/256, the default refinement.

    python -m benchmarks.int8_refine                                    ten minutes
    python -m benchmarks.int8_refine --scale small --skills json_calls --seeds 0    half an hour
    python -m benchmarks.int8_refine --quick                            a base that knows nothing, less than a minute
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, bootstrap, judged, run
from benchmarks.zip_quality.codecs import SKILLZIP
from benchmarks.zip_quality.measure import KL, SCORE, Specialist, specialist_of
from benchmarks.zip_quality.skills import SEEDS, SHORT, scale_named
from skillweave.errors import UserError, nearest
from skillweave.pack import Skillpack
from skillweave.progress import bar
from skillweave.report import Table
from skillweave.skillzip import ZipConfig
from skillweave.weave import put_into_int8

NAME = "int8_refine"
RUNS = Path("runs/int8-refine")
ON_FLOATS, ON_INT8 = "refined on floats", "refined on int8"
ARMS: dict[str, dict[str, Any] | None] = {"not refined": None, ON_FLOATS: {}, ON_INT8: {"backbone": "int8"}}
SMOLLM2: tuple[str, dict[str, Any]] = "1/256", {}
MICRO: tuple[str, dict[str, Any]] = "1/64", {"steps": 300, "patience": None, "learning_rate": 0.02}
QUICK: tuple[str, dict[str, Any]] = "1/64", {"steps": 8}
"""The ratio of the packs, and the settings of their refinement that are not the defaults."""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro", "gpt2", "qwen3", "small"])
    parser.add_argument("--skills", nargs="+", help="only these skills of the scale")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)), help="default: %(default)s")
    options = parser.parse_args(argv)
    scale = f"quick-{options.scale}" if options.quick else options.scale
    skills = options.skills or list(scale_named(scale).skills)
    for skill in skills:
        if skill not in scale_named(scale).skills:
            raise UserError(f"the scale {scale} has no skill '{skill}'; {nearest(skill, scale_named(scale).skills)}")
    record = Record.begin(NAME, options, argv, seeds=options.seeds)
    ratio, settings = QUICK if options.quick else SMOLLM2 if options.scale == "small" else MICRO
    plans = [(skill, seed, arm) for skill in skills for seed in options.seeds for arm in ARMS]
    with tempfile.TemporaryDirectory() as temporary, bar("packs", len(plans)) as advance:
        folder = Path(temporary) if options.quick else RUNS / options.scale
        for skill, seed, arm in plans:
            form = ARMS[arm]
            refine = None if form is None else {**settings, **form, "seed": seed}
            config = ZipConfig.model_validate({"ratio": ratio, "allow_left_out": True, "refine": refine, "seed": seed})
            specialist = specialist_of(scale, skill, SHORT, None, folder)
            figures = measured(specialist, specialist.zipped(SKILLZIP, seed, config))
            record.rows.append({"skill": skill, "seed": seed, "arm": arm, **figures})
            advance()
    for skill in skills:
        kl = {arm: per_prompt(record.rows, skill, arm) for arm in ARMS}
        pairs = np.stack([kl[ON_INT8], kl[ON_FLOATS]], axis=1)
        low, high = bootstrap(pairs, lambda picked: picked[..., 0].mean(axis=1) / picked[..., 1].mean(axis=1))
        value = float(pairs[:, 0].mean() / pairs[:, 1].mean())
        claim = f"{skill}: KL on the int8 backbone, {ON_INT8} over {ON_FLOATS}"
        record.claims.append(judged(claim, value, low, high, "< 1"))
    record.finish(table(record.rows, skills), plot(record.rows, skills))


def measured(specialist: Specialist, pack: Skillpack) -> dict[str, Any]:
    """Return the figures of one pack: its losses on the base in int8 and in floats, and its score in int8."""
    in_int8 = served_in_int8(specialist)
    return {
        "pack_bytes": pack.nbytes,
        "kl_int8": in_int8.measured(pack, KL)["kl_of_prompts"],
        "kl_floats": specialist.measured(pack, KL)["kl_of_prompts"],
        "score_int8": in_int8.measured(pack, SCORE)["score_of_prompts"],
    }


def served_in_int8(specialist: Specialist) -> Specialist:
    """Return the specialist with a copy of its base in int8; what it says itself stays the same."""
    other = copy.copy(specialist)
    other.base = put_into_int8(replace(specialist.base, model=copy.deepcopy(specialist.base.model)))
    return other


def per_prompt(rows: Sequence[dict[str, Any]], skill: str, arm: str, key: str = "kl_int8") -> np.ndarray:
    """Return a figure of each test prompt (n,), the mean over seeds."""
    return np.mean([row[key] for row in rows if (row["skill"], row["arm"]) == (skill, arm)], axis=0)


def table(rows: Sequence[dict[str, Any]], skills: Sequence[str]) -> Table:
    """A line for each skill and arm, the mean over seeds."""
    header = ["skill", "pack", "KL in int8, 1/1000 nat", "each seed", "KL in floats", "score in int8"]
    lines = []
    for skill in skills:
        for arm in ARMS:
            seeds = [
                1000 * float(np.mean(row["kl_int8"])) for row in rows if (row["skill"], row["arm"]) == (skill, arm)
            ]
            means = [float(per_prompt(rows, skill, arm, key).mean()) for key in ("kl_floats", "score_int8")]
            each = ", ".join(f"{value:.3g}" for value in seeds)
            lines.append([skill, arm, f"{np.mean(seeds):.3g}", each, f"{1000 * means[0]:.3g}", f"{means[1]:.1%}"])
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]], skills: Sequence[str]) -> Figure:
    """A figure of the KL on the int8 backbone, a group of bars for each skill."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(skills))
    for number, (arm, colour) in enumerate(zip(ARMS, ("#999999", "#E69F00", "#0072B2"), strict=True)):
        heights = [1000 * float(per_prompt(rows, skill, arm).mean()) for skill in skills]
        axes.bar(at + 0.27 * (number - 1), heights, 0.25, label=arm, color=colour)
    axes.set_xticks(at, skills)
    axes.set_ylabel("KL in int8, 1/1000 nat")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    return figure


if __name__ == "__main__":
    run(main)
