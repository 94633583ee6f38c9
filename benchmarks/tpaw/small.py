"""The TPAW benchmark on SmolLM2: the gain of self-play after SFT, what it forgets, and the memory of a team."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.common.record import Claim, Record, judged
from benchmarks.common.runs import run_all
from benchmarks.tpaw.arms import ARMS, COMPUTE, SFT, SPIN, TPAW, ahead, curves, equal_steps, plot, table
from skillweave.base import Base, Sampling, answer_ids, generate, open_base, prompt_ids
from skillweave.delta import Delta
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.tpaw import TpawConfig
from skillweave.report import Table
from skillweave.tasks import evaluate, load_task

BASE = "bundled:smollm2"
TASK = "sort_numbers"
OTHERS = ("builtin:extract_contact", "builtin:count_letters")
ROUNDS = 3
STEPS = 4
BATCH = 16
PROMPTS = 64
HELD_OUT = 64
ASKED = 32
START: dict[str, Any] = {"steps": 40, "batch_size": 16, "learning_rate": 5e-5}
RATE = 1e-5
LAM = 0.1


@dataclass(frozen=True)
class Play:
    """One arm with a seed, from the SFT model in ``start``."""

    arm: str
    seed: int
    start: str


@dataclass(frozen=True)
class Before:
    """A plan to make the SFT model and measure what it knows of the other tasks."""

    start: str


def main(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    """Run the small scale; ``kept`` holds the SFT model and the finished runs."""
    record = Record.begin("tpaw", options, argv, range(options.seeds or 3))
    start = str(kept / "sft")
    before = run_all([Before(start)], supervise, kept, jobs=1, fresh=True)
    plans = [Play(arm, seed, start) for seed in record.seeds for arm in (SFT, SPIN, TPAW)]
    results = run_all(plans, play, kept, jobs=1, fresh=True)
    common = {"task": TASK, "comparison": COMPUTE, "learning_rate": RATE, "lam": LAM}
    record.rows = [
        {**common, "arm": plan.arm, "seed": plan.seed, **result} for plan, result in zip(plans, results, strict=True)
    ]
    where = {"task": TASK, "comparison": COMPUTE}
    record.claims = [memory(record.rows)]
    if len(record.seeds) > 1:  # a single run of each shows no spread
        record.claims += [ahead(record.rows, SPIN, **where), ahead(record.rows, SFT, **where)]
    record.rows.append({"arm": "before the play", **before[0]})
    played = record.rows[:-1]
    seconds = sum(row["seconds"] for row in record.rows)
    record.finish(_with_costs(table(played), played, before[0]), plot(played), seconds)


def memory(rows: Sequence[dict[str, Any]]) -> Claim:
    """The claim that three players need hardly more memory than one; its interval is the range over seeds."""
    peaks = {arm: [row["peak_bytes"] for row in rows if row["arm"] == arm] for arm in (SPIN, TPAW)}
    ratios = [three / one for three, one in zip(peaks[TPAW], peaks[SPIN], strict=True)]
    return judged(
        "peak memory of a run with three players, over that with one", fmean(ratios), min(ratios), max(ratios), "<= 1.1"
    )


def supervise(plan: Before) -> dict[str, Any]:
    """Train the SFT model and save it as a delta in ``start/delta``."""
    settings = {**_common(seed=0), "loss": "sft", "rounds": 1, "training": START}
    get_method("tpaw").run(open_base(BASE, device="cpu"), TpawConfig.model_validate(settings), Path(plan.start))
    stages = read_json(Path(plan.start) / "figures.json")["stages"]
    return {**curves(stages), "others": others(Path(plan.start) / "delta")}


def play(plan: Play) -> dict[str, Any]:
    """Run three rounds of one arm at equal compute."""
    settings = {
        **_common(plan.seed),
        **ARMS[plan.arm],
        "start": str(Path(plan.start) / "delta"),
        "rounds": ROUNDS,
        "lam": LAM,
        "training": {"steps": equal_steps(plan.arm, STEPS), "batch_size": BATCH, "learning_rate": RATE},
    }
    folder = Path(plan.start).with_name(f"play-{plan.arm.replace(' ', '-')}-{plan.seed}")
    get_method("tpaw").run(open_base(BASE, device="cpu"), TpawConfig.model_validate(settings), folder)
    stages = read_json(folder / "figures.json")["stages"]
    team = [stages[f"round-{at}"]["team_bytes"] for at in range(1, ROUNDS + 1)]
    return {**curves(stages), "others": others(folder / "delta"), "team_bytes": team}


def _common(seed: int) -> dict[str, Any]:
    splits = {"train": PROMPTS, "calibration": HELD_OUT, "test": 1}
    return {
        "task": {"source": "builtin", "name": TASK, "splits": splits},
        "seed": seed,
        "keep": "last",
        "patience": None,
        "held_out": HELD_OUT,
        "max_new_tokens": 32,
    }


def others(delta: Path) -> dict[str, dict[str, float]]:
    """Score of greedy answers, and mean log-probability of the gold answers (nats), on tasks that were not trained."""
    base = Delta.from_pretrained(delta).apply(open_base(BASE, dtype="float32", device="cpu"), in_place=True)
    found = {}
    for name in OTHERS:
        task = load_task(name)
        score = evaluate(
            task, lambda prompts: [a[0] for a in generate(base.model, base.tokenizer, prompts, _SHORT)], limit=ASKED
        )
        found[task.name] = {"score": score.mean, "log_prob": fmean(_log_probs(base, task.pairs("test")[:ASKED]))}
    return found


_SHORT = Sampling(max_new_tokens=32, batch_size=16)


def _log_probs(base: Base, pairs: Sequence[tuple[Any, str]]) -> list[float]:
    from skillweave.base.batching import padded
    from skillweave.methods.training.head import answer_log_probs, install_scoring_head

    install_scoring_head(base.model)
    rows = [(prompt_ids(base.tokenizer, prompt), answer_ids(base.tokenizer, answer)) for prompt, answer in pairs]
    with torch.no_grad():
        return [
            value
            for at in range(0, len(rows), 8)
            for value in answer_log_probs(base.model, padded(rows[at : at + 8], base.tokenizer.pad_token_id)).tolist()
        ]


def _with_costs(shown: Table, rows: Sequence[dict[str, Any]], before: dict[str, Any]) -> Table:
    """The table with added columns: peak memory, the team's bytes on disk, log-probability on the other tasks."""
    lines = []
    for line, arm in zip(shown.rows, dict.fromkeys(row["arm"] for row in rows), strict=True):
        group = [row for row in rows if row["arm"] == arm]
        peak = f"{fmean(row['peak_bytes'] for row in group) / 1e9:.2f}"
        team = f"{group[0]['team_bytes'][-1] / 1e6:.0f}" if group[0]["team_bytes"][-1] else "-"
        forgot = [
            f"{before['others'][name]['log_prob']:.1f} -> {fmean(row['others'][name]['log_prob'] for row in group):.1f}"
            for name in before["others"]
        ]
        lines.append([*line, peak, team, *forgot])
    header = [*shown.header, "peak GB", "team MB", *(f"{name}, nats" for name in before["others"])]
    return Table(header, lines)
