"""Compare team self-play with continued SFT, SPIN, T-SPIN, DPO on a verifier's preferences, and TPAW without its parts.

Claims: at equal training compute TPAW ends above SPIN and above continued SFT. Over the rounds it does not fall back,
and it keeps more of its gap than SPIN. Each of its parts (team, alpha, beta) helps.

micro: two tasks with verifiers. A micro model is trained from scratch on 1000 examples until it knows half to two
thirds of them and a third to two thirds of unseen ones. Every arm starts from that model and learns from the same 1000
examples for five rounds. There are two comparisons at tuned settings:

- Equal compute: every round of every arm trains on the same number of sequences (24 steps of 32 pairs; T-SPIN, with
  three sequences a row, takes 16 steps; SFT, with one, takes 48). Generation (DPO: four answers a prompt, SFT: none)
  and the scoring by players are not counted.
- Equal rounds: a round goes once over the arm's own data, of which TPAW has the most.

Each arm's learning rate (of four) and lam (of two) are chosen by its last score on seeds of their own, at equal
compute. TPAW without a part uses TPAW's values, which favours TPAW. Scores are exact match of greedy answers to 300
unseen prompts. Nothing is chosen on them: all rounds are played and the last one counts. Intervals are Student's t over
seeds, of differences within a seed.

A third comparison is exploratory. It was added after the tuning grid had been seen, to find out what each part does:
equal compute, all arms at a learning rate of 1e-3 (three to ten times the tuned ones) and the lam of SPIN's paper, 0.1.

small: SmolLM2 after SFT on one task plays three rounds at equal compute against SPIN and continued SFT; two other tasks
show what is forgotten. All arms have one learning rate, which is not tuned, one SFT model and one data set, so
intervals over seeds cover the self-play alone. Every run has a process of its own, whose peak memory is measured: three
players against one.

Finished runs are kept in runs/bench, so that a stopped benchmark resumes. Delete that folder after a change of the
code.

    python -m benchmarks.tpaw                          micro: most of an hour on two cores
    python -m benchmarks.tpaw --scale small            three quarters of an hour on two cores
    python -m benchmarks.tpaw --quick                  a tiny model, two arms, two rounds
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.common.runs import run_all
from benchmarks.tpaw import small
from benchmarks.tpaw.arms import (
    ARMS,
    COMPUTE,
    CUT,
    DPO,
    GRID,
    HARSH,
    ROUNDS,
    SFT,
    SPIN,
    TPAW,
    ahead,
    curves,
    equal_steps,
    keeps_its_gap,
    last,
    plot,
    rises,
    table,
)
from skillweave.base import open_base
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.tpaw import TpawConfig
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base
from skillweave.tasks import load_task

NAME = "tpaw"
RUNS = Path("runs/bench")
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
LAMS = (0.1, 1.0)
TUNING_SEEDS = (100, 101)
HARD = (1e-3, 0.1)
BATCH = 32
STEPS = 24
PLAYED = 5
COMPARED: dict[str, list[str]] = {
    COMPUTE: [*ARMS, *CUT],
    ROUNDS: [SFT, SPIN, TPAW],
    HARSH: [SFT, SPIN, DPO, TPAW, *CUT],
}


@dataclass(frozen=True)
class Bench:
    """A task, and how long the model is trained on it before the self-play starts."""

    task: str
    config: dict[str, int]
    steps: int
    learning_rate: float
    examples: int = 1000
    held_out: int = 300


BENCHES = [
    Bench("micro_sort", {"least": 3, "most": 6}, steps=400, learning_rate=3e-3),
    Bench("micro_add", {"least": 1, "most": 2}, steps=600, learning_rate=2e-3),
]
QUICK = Bench("micro_sort", {"least": 2, "most": 4}, steps=30, learning_rate=3e-3, examples=60, held_out=20)


@dataclass(frozen=True)
class Plan:
    """One run: an arm on a task with a seed."""

    bench: Bench
    arm: str
    comparison: str
    learning_rate: float
    lam: float
    seed: int
    rounds: int = PLAYED
    steps: int = STEPS


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro", "small"])
    parser.add_argument("--seeds", type=positive, help="seeds that count (default: 5, small: 3)")
    parser.add_argument("--jobs", type=positive, default=2, help="micro runs at once (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.scale == "small" and not options.quick:
        small.main(options, argv, RUNS / "tpaw-small")
    elif options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _quick(options, argv, Path(folder))
    else:
        _micro(options, argv, RUNS / "tpaw-micro")


def _micro(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    record = Record.begin(NAME, options, argv, range(options.seeds or 5))
    grid = grid_plans()
    tried = rows(grid, run_all(grid, play, kept, jobs=options.jobs))
    plans = []
    for seed in record.seeds:
        for bench in BENCHES:
            for comparison, arms in COMPARED.items():
                for arm in arms:
                    pair = HARD if comparison == HARSH else chosen(tried, bench.task, TPAW if arm in CUT else arm)
                    plans.append(Plan(bench, arm, comparison, *pair, seed))
    record.rows = rows(plans, run_all(plans, play, kept, jobs=options.jobs))
    for bench in BENCHES:
        for comparison, arms in COMPARED.items():
            where = {"task": bench.task, "comparison": comparison}
            others = [arm for arm in arms if arm in (SPIN, SFT, *CUT)]
            record.claims += [ahead(record.rows, other, **where) for other in others]
            record.claims.append(rises(record.rows, **where))
            if comparison == COMPUTE:
                record.claims.append(keeps_its_gap(record.rows, **where))
    shown = table(record.rows), plot([row for row in record.rows if row["comparison"] != ROUNDS])
    record.rows += tried
    record.finish(*shown, sum(row["seconds"] for row in record.rows) / options.jobs)


def _quick(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    record = Record.begin(NAME, options, argv, [0, 1])
    plans = [Plan(QUICK, arm, COMPUTE, 1e-3, 0.1, seed, rounds=2, steps=2) for arm in (SPIN, TPAW) for seed in (0, 1)]
    record.rows = rows(plans, run_all(plans, play, kept, jobs=1))
    where = {"task": QUICK.task, "comparison": COMPUTE}
    record.claims = [ahead(record.rows, SPIN, **where), rises(record.rows, **where)]
    record.finish(table(record.rows), plot(record.rows))


def grid_plans() -> list[Plan]:
    """Every learning rate and lam of every arm, on the tuning seeds; continued SFT has no lam."""
    return [
        Plan(bench, arm, GRID, rate, lam, seed)
        for bench in BENCHES
        for arm in ARMS
        for rate in RATES
        for lam in (LAMS[:1] if arm == SFT else LAMS)
        for seed in TUNING_SEEDS
    ]


def chosen(tried: Sequence[dict[str, Any]], task: str, arm: str) -> tuple[float, float]:
    """The learning rate and lam with the best mean last score on the tuning seeds."""
    scores: dict[tuple[float, float], list[float]] = {}
    for row in tried:
        if (row["task"], row["arm"]) == (task, arm):
            scores.setdefault((row["learning_rate"], row["lam"]), []).append(last(row))
    return max(scores, key=lambda pair: fmean(scores[pair]))


def play(plan: Plan) -> dict[str, Any]:
    """Run one arm from the shared start, and return its figures round by round."""
    torch.set_num_threads(1)
    bench = plan.bench
    splits = {"train": bench.examples, "calibration": bench.held_out, "test": 1}
    task = {"source": "builtin", "name": bench.task, "config": bench.config, "seed": plan.seed, "splits": splits}
    first = TrainingSettings(
        steps=bench.steps, batch_size=BATCH, learning_rate=bench.learning_rate, schedule="constant_with_warmup"
    )
    base = micro_base(
        load_task(task).pairs("train"), shape=MicroShape(context=64), training=first, seed=plan.seed, name=bench.task
    )
    training: dict[str, Any] = {
        "batch_size": BATCH,
        "learning_rate": plan.learning_rate,
        "schedule": "constant_with_warmup",
        "warmup": 0.05,
    }
    if plan.comparison != ROUNDS:
        training["steps"] = equal_steps(plan.arm, plan.steps)
    settings = {
        "task": task,
        "seed": plan.seed,
        "rounds": plan.rounds,
        "lam": plan.lam,
        "training": training,
        "bf16": False,
        "keep": "last",
        "patience": None,
        "held_out": bench.held_out,
        "max_new_tokens": 10,
        "sampling_batch_size": 250,
        "save_every": 10_000,
        **{**ARMS, **CUT}[plan.arm],
    }
    with tempfile.TemporaryDirectory() as folder:
        get_method("tpaw").run(open_base(base, device="cpu"), TpawConfig.model_validate(settings), Path(folder))
        return curves(read_json(Path(folder) / "figures.json")["stages"])


def rows(plans: Sequence[Plan], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the result."""
    return [
        {
            "task": plan.bench.task,
            "comparison": plan.comparison,
            "arm": plan.arm,
            "seed": plan.seed,
            "learning_rate": plan.learning_rate,
            "lam": plan.lam,
            **result,
        }
        for plan, result in zip(plans, results, strict=True)
    ]


if __name__ == "__main__":
    run(main)
