"""Scarce traces on SmolLM2: eight expert traces of two sums, while the prompts of RL and of the test have two to four.

So RL has to find longer chains than any expert has shown. Every arm with RL plays as many batches. Arms that begin with
supervised training begin with the same one, which comes in three lengths. A stopped cell resumes inside its run.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from time import process_time
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, judged, student
from benchmarks.common.runs import as_far_as_measured
from benchmarks.e3tir.arms import changed_experts
from benchmarks.e3tir.scarce_arms import AFTER_SFT, ANNEALED, SFT, SFT_RL, ZERO
from skillweave.base import open_base
from skillweave.files.read import read_json
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir.run import run as warm_up
from skillweave.methods.e3tir.watch import evaluate_agent
from skillweave.report import Table
from skillweave.tasks.expert_traces import Trace
from skillweave.tasks.with_tools import load_agent

BASE = "bundled:smollm2"
TRACES = 8
SHOWN = 2
"""Operations of the prompts that have a trace."""
LENGTHS = (2, 3, 4)
"""Operations of the prompts of RL and of the test."""
TESTED = 96
BATCHES = 10
PROMPTS = 4
N = 8
RATE = 2e-5
SFT_STEPS = (10, 20, 40)
"""The lengths of the supervised training, in steps of eight conversations: its loss ends at 0.26, 0.1 and 0.002."""
GOAL = 5


@dataclass(frozen=True)
class Cell:
    """A plan: an arm with a seed, after so many steps of supervised training on the traces."""

    arm: str
    seed: int
    sft_steps: int


def main(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    """Run the small scale, or show what there is of it; ``kept`` holds the finished runs."""
    record = Record.begin("e3tir-scarce", options, argv, range(1, 1 + (options.seeds or 1)), module="e3tir.scarce")
    cells = [cell for seed in record.seeds for cell in cells_of(seed)]
    record.rows = as_far_as_measured(cells, functools.partial(measured, kept=kept), kept, show=options.show)
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows), sum(row["seconds"] for row in record.rows))


def cells_of(seed: int) -> list[Cell]:
    """Return the cells of a seed, the most important ones first."""
    light, middle, long = SFT_STEPS
    return [
        Cell(SFT_RL, seed, light),
        Cell(AFTER_SFT, seed, light),
        Cell(SFT_RL, seed, long),
        Cell(AFTER_SFT, seed, long),
        Cell(SFT_RL, seed, middle),
        Cell(AFTER_SFT, seed, middle),
        *(Cell(SFT, seed, length) for length in SFT_STEPS),
        Cell(ANNEALED, seed, 0),
        Cell(ZERO, seed, 0),
    ]


# -- a run -----------------------------------------------------------------------------------------------------------


def settings(cell: Cell) -> E3tirConfig:
    """Return the settings of a cell, without the file of its experts."""
    none = {"steps": 0}
    group = {"prompts": PROMPTS, "learning_rate": RATE, "micro_batch_size": 4}
    half = BATCHES // 2
    stages: dict[str, dict[str, Any]] = {
        SFT: {"warm_up": none, "rl": none},
        SFT_RL: {"warm_up": none, "rl": {**group, "steps": BATCHES, "n": N}},
        ANNEALED: {
            "warm_up": {**group, "steps": half, "n": N // 2, "m": N // 2},
            "rl": {**group, "steps": BATCHES - half, "n": N},
            "expert": {"branch": "annealed"},
        },
    }
    stages |= {ZERO: stages[SFT_RL], AFTER_SFT: stages[ANNEALED]}
    sft = {"steps": cell.sft_steps, "batch_size": 8, "micro_batch_size": 4, "learning_rate": RATE}
    return E3tirConfig.model_validate(
        {
            "task": {
                "source": "builtin",
                "name": "steps",
                "seed": cell.seed,
                "config": {"least": LENGTHS[0], "most": LENGTHS[-1], "digits": 1},
                "splits": {"train": 300, "calibration": 1, "test": TESTED},
            },
            "seed": cell.seed,
            "traces": TRACES,
            "save_every": 5,
            "evaluate_on": 0,
            "show_every": 5,
            "rollout": {"max_tokens": 240, "max_tool_calls": LENGTHS[-1] + 1, "batch_size": 64},
            "reward": {"no_answer": 0, "malformed": 0},
            **stages[cell.arm],
            **({"sft": sft} if cell.sft_steps else {}),
        }
    )


def measured(cell: Cell, kept: Path) -> dict[str, Any]:
    """Train the arm of a cell; return its row: scores of greedy answers by length, and what the run cost."""
    began = process_time()
    folder = kept / f"{cell.arm}-{cell.seed}-{cell.sft_steps}".replace(" -> ", "-then-").replace(", ", "-")
    base, config = open_base(BASE, device="cpu"), settings(cell)
    if config.asks_experts:
        folder.mkdir(parents=True, exist_ok=True)
        experts = changed_experts(config, folder, shown)
        config = config.model_copy(update={"experts": experts})
    model = warm_up(base, config, folder / "run").apply(base)
    seconds = process_time() - began
    figures = read_json(folder / "run" / "figures.json")
    histories = [folder / "run" / stage / "history.json" for stage in ("warm-up", "rl")]
    with (agent := load_agent(config.task)).toolbox:
        form = config.tool_use.call_format(model.tokenizer, agent.toolbox)
        test = agent.task.split("test")
        by_length = {
            str(length): evaluate_agent(
                model.model,
                agent,
                form,
                [entry for entry in test if operations(str(entry.prompt)) == length],
                config.rollout,
            )
            for length in LENGTHS
        }
    return {
        **asdict(cell),
        "success": {length: found["success"] for length, found in by_length.items()},
        "calls": {length: found["calls"] for length, found in by_length.items()},
        "prompts": {str(length): sum(operations(str(entry.prompt)) == length for entry in test) for length in LENGTHS},
        "curve": [
            entry["agent/success"]
            for history in histories
            if history.exists()
            for entry in read_json(history)
            if "agent/success" in entry
        ],
        "expert_tokens": figures["expert_tokens"],
        "sampled_tokens": sum(stage.get("sampled_tokens", 0) for stage in figures["stages"].values()),
        "seconds": round(seconds, 1),
    }


def shown(trace: Trace, _: Random) -> Trace | None:
    """Return the trace if its prompt has :data:`SHOWN` operations."""
    return trace if operations(trace.messages[0]["content"]) == SHOWN else None


def operations(prompt: str) -> int:
    """Return the number of operations in a prompt."""
    return len(re.findall(r"(?:Add|Subtract|Multiply by) \d", prompt))


# -- the result ------------------------------------------------------------------------------------------------------


def score(row: dict[str, Any]) -> float:
    """Return the score of a row over all test prompts, in percent."""
    right = sum(row["success"][length] * count for length, count in row["prompts"].items())
    return 100 * right / sum(row["prompts"].values())


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return the claims for which there are rows. With one seed an interval is open, and no such claim holds."""
    ours, found = best_of(rows, AFTER_SFT, ANNEALED), []
    if zero := best_of(rows, ZERO):
        found.append(judged(f"{ZERO}, percent", *student(list(zero.values())), "< 5"))
    for other, goal in ((SFT_RL, f"> {GOAL}"), (SFT, "> 0")):
        theirs = best_of(rows, other)
        if both := sorted(ours.keys() & theirs.keys()):
            values = [ours[seed] - theirs[seed] for seed in both]
            name = f"E3-TIR less {other}, points, each at its best length of supervised training"
            found.append(judged(name, *student(values), goal))
    return found


def best_of(rows: Sequence[dict[str, Any]], *arms: str) -> dict[int, float]:
    """Return the scores by seed of the arm, and of the length of its supervised training, with the best mean."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        if row["arm"] in arms:
            found.setdefault((row["arm"], row["sft_steps"]), {})[row["seed"]] = score(row)
    return max(found.values(), key=lambda scores: fmean(scores.values()), default={})


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line for each cell."""
    header = ["arm", "steps of SFT", "seed", "all", *(f"{length} sums (prompts)" for length in LENGTHS)]
    header += ["calls", "in rollouts, first and last 3", "expert tokens", "policy tokens", "processor s", "peak GB"]
    return Table(header, [_line(row) for row in sorted(rows, key=lambda row: (row["sft_steps"], row["arm"]))])


def _line(row: dict[str, Any]) -> list[str]:
    curve = row["curve"]
    return [
        row["arm"],
        str(row["sft_steps"]),
        str(row["seed"]),
        f"{score(row):.1f}",
        *(f"{100 * row['success'][str(length)]:.0f} ({row['prompts'][str(length)]})" for length in LENGTHS),
        ", ".join(f"{row['calls'][str(length)]:.1f}" for length in LENGTHS),
        f"{100 * fmean(curve[:3]):.0f} to {100 * fmean(curve[-3:]):.0f}" if curve else "-",
        f"{row['expert_tokens']:,}",
        f"{row['sampled_tokens']:,}",
        f"{row['seconds']:.0f}",
        f"{row['peak_bytes'] / 1e9:.1f}",
    ]


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Return a figure of the scores by length of the chain, and of the success in rollouts."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    scores, rollouts = figure.subplots(1, 2)
    colours = {ZERO: "#999999", SFT: "#009E73", SFT_RL: "#D55E00", AFTER_SFT: "#0072B2", ANNEALED: "#56B4E9"}
    lines = dict(zip(SFT_STEPS, (":", "--", "-"), strict=True))
    for row in rows:
        look: dict[str, Any] = {"color": colours[row["arm"]], "linestyle": lines.get(row["sft_steps"], "-")}
        label = f"{row['arm']}, {row['sft_steps']} steps of SFT" if row["sft_steps"] else row["arm"]
        scores.plot(LENGTHS, [100 * row["success"][str(length)] for length in LENGTHS], "o", label=label, **look)
        if row["curve"]:
            rollouts.plot(range(1, 1 + len(row["curve"])), [100 * value for value in row["curve"]], **look)
    scores.set_xticks(LENGTHS)
    scores.set_xlabel("sums in the prompt (traces have two)")
    scores.set_ylabel("greedy success on test prompts, %")
    rollouts.set_xlabel("batch of rollouts")
    rollouts.set_ylabel("success of the policy's own rollouts, %")
    for axis in (scores, rollouts):
        axis.set_ylim(-3, 103)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *scores.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False, handlelength=4
    )
    return figure
