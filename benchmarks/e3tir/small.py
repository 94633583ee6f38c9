"""The E3-TIR benchmark on SmolLM2: arithmetic in steps with a calculator, three arms at equal wall time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, judged
from benchmarks.common.runs import run_all
from skillweave.base import open_base
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.report import Table

BASE = "bundled:smollm2"
TASK = {
    "source": "builtin",
    "name": "steps",
    "config": {"least": 2, "most": 2, "digits": 1},
    "splits": {"train": 300, "calibration": 48, "test": 100},
}
TRACES = 8
RATE = 2e-5
ZERO = "Zero-RL"
SFT = "SFT"
E3 = "E3-TIR"
_SFT_STEP = {"batch_size": 8, "learning_rate": RATE}


@dataclass(frozen=True)
class Plan:
    """One arm with a seed. ``steps`` (of all its stages) are chosen so that all arms take about the same time."""

    arm: str
    seed: int
    steps: int
    folder: str


STEPS = {ZERO: 18, SFT: 120, E3: 12}


def main(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    """Run the small scale; ``kept`` holds the finished runs."""
    record = Record.begin("e3tir", options, argv, range(1, 1 + (options.seeds or 1)))
    plans = [Plan(arm, seed, STEPS[arm], str(kept)) for seed in record.seeds for arm in STEPS]
    results = run_all(plans, trained, kept, jobs=1, fresh=True)
    record.rows = [{**asdict(plan), **result} for plan, result in zip(plans, results, strict=True)]
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows), sum(row["seconds"] for row in record.rows))


def settings(plan: Plan) -> dict[str, Any]:
    """The settings of an arm: RL alone, supervised training alone, or a little of it before warm-up and RL."""
    none = {"steps": 0}
    group = {"prompts": 4, "learning_rate": RATE, "micro_batch_size": 8}
    arms: dict[str, dict[str, Any]] = {
        ZERO: {"warm_up": none, "rl": {**group, "steps": plan.steps, "n": 8}},
        SFT: {"warm_up": none, "rl": none, "sft": {**_SFT_STEP, "steps": plan.steps}},
        E3: {
            "warm_up": {**group, "steps": plan.steps // 2, "n": 4, "m": 4},
            "sft": {**_SFT_STEP, "steps": 40},
            "rl": {**group, "steps": plan.steps // 2, "n": 8},
        },
    }
    return {
        "task": {**TASK, "seed": plan.seed},
        "seed": plan.seed,
        "traces": TRACES,
        "save_every": 10,
        "rollout": {"max_tokens": 120, "batch_size": 64},
        "reward": {"no_answer": 0, "malformed": 0},
        "evaluate_every": 2,
        "evaluate_on": 48,
        "show_every": 4,
        **arms[plan.arm],
    }


def trained(plan: Plan) -> dict[str, Any]:
    """Train an arm and return its learning curve by wall time."""
    method = get_method("e3tir")
    folder = Path(plan.folder) / f"{plan.arm}-{plan.seed}"
    method.run(open_base(BASE, device="cpu"), method.config.model_validate(settings(plan)), folder)
    figures = read_json(folder / "figures.json")
    stages = figures["stages"]
    spent = stages["sft"]["seconds"] if "sft" in stages else 0.0
    curve = [(0.0, figures["before"]["success"])]
    for stage in ("warm-up", "rl"):
        if stage in stages:
            curve += [(spent + look["seconds"], look["success"]) for look in read_json(folder / stage / "curve.json")]
            spent = curve[-1][0]
    if plan.arm == SFT:
        curve.append((spent, figures["after"]["success"]))
    return {
        "curve": curve,
        "before": figures["before"]["success"],
        "after": figures["after"]["success"],
        "calls": figures["after"]["calls"],
        "failed_calls": figures["after"]["failed_calls"],
        "expert_tokens": figures["expert_tokens"] if plan.arm != ZERO else 0,
        "seconds": curve[-1][0],
        "sampled_tokens": sum(stage.get("sampled_tokens", 0) for stage in stages.values()),
    }


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Claims: E3-TIR against the other arms at their ends. With one seed the interval is the value."""
    made = []
    for other in (ZERO, SFT):
        pairs = [(_row(rows, E3, seed), _row(rows, other, seed)) for seed in sorted({row["seed"] for row in rows})]
        values = [100 * (ours["after"] - theirs["after"]) for ours, theirs in pairs]
        ours, theirs = (sum(pair[side]["seconds"] for pair in pairs) / len(pairs) / 60 for side in (0, 1))
        name = f"{E3} after {ours:.1f} minutes less {other} after {theirs:.1f}, points"
        made.append(judged(name, sum(values) / len(values), min(values), max(values), "> 0"))
    return made


def _row(rows: Sequence[dict[str, Any]], arm: str, seed: int) -> dict[str, Any]:
    return next(row for row in rows if (row["arm"], row["seed"]) == (arm, seed))


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table with one line for each arm and seed."""
    header = [
        "arm",
        "seed",
        "before",
        "after",
        "calls",
        "failed",
        "expert tokens",
        "policy tokens",
        "minutes",
        "peak GB",
    ]
    return Table(
        header,
        [
            [
                row["arm"],
                str(row["seed"]),
                f"{100 * row['before']:.0f}",
                f"{100 * row['after']:.0f}",
                f"{row['calls']:.2f}",
                f"{row['failed_calls']:.2f}",
                f"{row['expert_tokens']:,}",
                f"{row['sampled_tokens']:,}",
                f"{row['seconds'] / 60:.1f}",
                f"{row['peak_bytes'] / 1e9:.1f}",
            ]
            for row in rows
        ],
    )


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of success by wall time."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    # Supervised training is evaluated at its start and its end; the line between them is dotted.
    for arm, colour, line in ((ZERO, "#999999", "o-"), (SFT, "#D55E00", "o:"), (E3, "#0072B2", "o-")):
        for row in rows:
            if row["arm"] == arm:
                times, values = zip(*row["curve"], strict=True)
                axis.plot(
                    [when / 60 for when in times], [100 * value for value in values], line, color=colour, label=arm
                )
    axis.set_xlabel("minutes of training, rollouts included")
    axis.set_ylabel("success on 48 held-out prompts, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure
