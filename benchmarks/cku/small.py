"""The unlearning benchmark on SmolLM2, which learns the invented corpus in sentences and then forgets a part of it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cku.arms import BOTH, GA, GA_KL, LOSSES, MASKS, NO_MASK, RMU, SIGN
from benchmarks.cku.show import plot
from benchmarks.common.record import Claim, Record, judged, student
from benchmarks.common.runs import run_all
from skillweave.base import Base, open_base
from skillweave.delta import write_tuned
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.cku.knowledge.corpus import make_corpus, write_corpus
from skillweave.methods.cku.knowledge.facts import Fact, fact_rows
from skillweave.methods.cku.knowledge.reading import read_rows
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.run import make_report
from skillweave.methods.training.head import install_scoring_head
from skillweave.report import Table
from skillweave.skillzip import zipped
from skillweave.weave import background_prompts

BASE = "bundled:smollm2"
TASKS = ["builtin:extract_contact", "builtin:count_letters"]
PEOPLE = 16
EVERYDAY = 160
"""So many of the bundled prompts are everyday ones; they come first."""
TEACH_EPOCHS = 7
TEACH_RATE = 1e-4
STEPS = 100
BATCH = 8
RATE = 2e-4
MU = 5.0
ARMS = [(GA_KL, SIGN), (GA_KL, NO_MASK), (GA_KL, "fisher"), (GA, NO_MASK), (RMU, NO_MASK)]


@dataclass(frozen=True)
class Teach:
    """A plan to teach SmolLM2 the corpus of a seed, with or without the forget set."""

    seed: int
    knows_forget: bool
    folder: str


@dataclass(frozen=True)
class Forget:
    """A plan of one arm with one seed, from the taught model."""

    loss: str
    mask: str
    seed: int
    folder: str
    rate: float = RATE
    mu: float = MU
    steps: int = STEPS


def main(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    """Run the small scale; ``kept`` holds the taught models and the finished runs."""
    record = Record.begin("cku", options, argv, range(1, 1 + (options.seeds or 1)))
    lessons = [Teach(seed, knows, str(kept)) for seed in record.seeds for knows in (True, False)]
    run_all(lessons, teach, kept, jobs=1, fresh=True)
    plans = [Forget(loss, mask, seed, str(kept)) for seed in record.seeds for loss, mask in ARMS]
    results = run_all(plans, forget, kept, jobs=1, fresh=True)
    record.rows = [
        {**asdict(plan), "comparison": "arms", **result} for plan, result in zip(plans, results, strict=True)
    ]
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows), sum(row["seconds"] for row in record.rows))


def corpus_folder(folder: str, seed: int) -> Path:
    """The folder of a seed's facts, which are written if they are not there."""
    place = Path(folder) / f"corpus-{seed}"
    if not place.is_dir():
        write_corpus(place, make_corpus(people=PEOPLE, seed=seed))
    return place


def taught_folder(plan: Teach) -> Path:
    """Where the model of a plan is kept."""
    return Path(plan.folder) / f"taught-{plan.seed}-{'all' if plan.knows_forget else 'without'}"


def teach(plan: Teach) -> dict[str, Any]:
    """Train SmolLM2 on questions and answers, and save it as a model folder."""
    corpus, target = corpus_folder(plan.folder, plan.seed), taught_folder(plan)
    lines = (corpus / "teach.jsonl").read_text().splitlines(keepends=True)
    if not plan.knows_forget:
        gone = set((corpus / "forget.jsonl").read_text().splitlines(keepends=True))
        lines = [line for line in lines if line not in gone]
    file = target.with_suffix(".jsonl")
    file.write_text("".join(lines))
    method = get_method("specialise")
    settings = {
        "task": {"source": "jsonl", "path": str(file), "splits": {"test": 0, "calibration": 0}},
        "seed": plan.seed,
        "rounds": 0,
        "probe_prompts": 1,
        "samples_per_prompt": 2,
        "max_new_tokens": 8,
        "warm_start": {
            "when": "always",
            "steps": None,
            "epochs": TEACH_EPOCHS,
            "learning_rate": TEACH_RATE,
            "batch_size": BATCH,
        },
    }
    delta = method.run(
        open_base(BASE, device="cpu"), method.config.model_validate(settings), target.with_suffix(".run")
    )
    write_tuned(BASE, delta, target, dtype="float32")
    return {"loss_last": read_json(target.with_suffix(".run") / "figures.json")["stages"]["warm-start"]["loss_last"]}


def forget(plan: Forget) -> dict[str, Any]:
    """Unlearn, make the report, and measure the perplexity of plain text before and after."""
    corpus, base_folder = corpus_folder(plan.folder, plan.seed), taught_folder(Teach(plan.seed, True, plan.folder))
    place = Path(plan.folder) / f"{plan.loss}-{plan.mask}-{plan.seed}".replace(" ", "")
    files = {side: str(corpus / f"{side}.jsonl") for side in ("forget", "retain", "unseen")}
    base = open_base(base_folder, device="cpu")
    method = get_method("cku")
    settings = {
        **files,
        "seed": plan.seed,
        "objective": {**LOSSES[plan.loss], "mu": plan.mu, "sign_agreement": plan.mask in (SIGN, BOTH)},
        "localise": {**MASKS[plan.mask], "examples": 64},
        "training": {"learning_rate": plan.rate, "steps": plan.steps, "batch_size": BATCH},
        "watch": {"every": 5, "budget": None, "held_out": 16},
    }
    delta = method.run(base, method.config.model_validate(settings), place / "run")
    figures = read_json(place / "run" / "figures.json")
    config = ReportConfig.model_validate(
        {
            **files,
            "delta": place / "run" / "delta",
            "lookalike": corpus / "lookalike.jsonl",
            "seed": plan.seed,
            "reference": str(taught_folder(Teach(plan.seed, False, plan.folder))),
            "tasks": TASKS,
            "task_limit": 24,
            "questions": 16,
            "relearn": {"learning_rate": 5e-5, "steps": 8, "batch_size": BATCH},
        }
    )
    found = make_report(base, config, place / "report", command="", zipper=zipped)
    before, after = figures["before"], figures["after"]
    unlearn = figures["stages"]["unlearn"]
    arms = found["arms"]
    seconds = sum(stage["seconds"] for stage in figures["stages"].values())
    return {
        "goal": before["unseen_strength"],
        "forget": after["forget_strength"],
        "ended": unlearn["ended"],
        "steps_taken": unlearn["kept_step"],
        "seconds": seconds + found["seconds"],
        "unlearn_seconds": seconds,
        "retain": after["retain_probability"] / before["retain_probability"],
        "held_out": after["held_out_probability"] / before["held_out_probability"],
        "lookalike": arms["after"]["lookalike_probability"] / arms["before"]["lookalike_probability"],
        "tasks": {arm: {name: one["mean"] for name, one in arms[arm]["tasks"].items()} for arm in arms},
        "perplexity": perplexity(delta.apply(base)),
        "perplexity_before": perplexity(base),
        "relearnt": found["relearning"]["forget"]["gap"],
        "unrelated": found["relearning"]["unrelated"]["gap"],
        "rounding": found["rounding"],
        "zipped": found["zipped"],
        "robustness": found["robustness"],
        "forget_quality": found["forget_quality"],
        "truth_ratio": arms["after"].get("truth_ratio"),
        "membership": arms["after"].get("membership_min_k"),
    }


def perplexity(base: Base) -> float:
    """The model's perplexity on the router's everyday prompts, read as plain text."""
    everyday = background_prompts()[:EVERYDAY]
    facts = [Fact(str(at), None, text, None, (), "") for at, text in enumerate(everyday)]
    rows, _ = fact_rows(base.tokenizer, facts, 64)
    install_scoring_head(base.model)
    reading = read_rows(base.model, rows, base.tokenizer.pad_token_id, batch_size=32, bf16=False)
    return math.exp(-sum(reading.log_prob) / sum(reading.tokens))


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Claims: what is kept, and that four bits and a zip bring nothing back (one seed: the interval is the value)."""

    def of(name: str, loss: str, mask: str, value: Any, goal: str) -> Claim:
        values = [value(row) for row in rows if (row["loss"], row["mask"]) == (loss, mask)]
        mean, low, high = student(values)
        return judged(f"{loss}, {mask}: {name}", mean, *((low, high) if len(values) > 1 else (mean, mean)), goal)

    made = []
    for loss, mask in ARMS:
        made += [
            of("kept of retain, %", loss, mask, lambda row: 100 * row["retain"], ">= 99"),
            of("brought back by four bits, %", loss, mask, lambda row: _points(row["rounding"]["4"]["gap"]), "<= 5"),
            of("brought back by a zip to 1/16, %", loss, mask, lambda row: _points(row["zipped"][0]["gap"]), "<= 5"),
        ]
    return made


def _points(gap: float | None) -> float:
    """A share of what was lost, in percent; 0 if nothing was lost or there is no pack."""
    return 100 * (gap or 0.0)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table with one line for each arm: means over seeds."""
    names = list(rows[0]["tasks"]["before"])
    header = [
        "loss, mask",
        "steps",
        "goal",
        "forget",
        "retain",
        "held out",
        "look-alike",
        "perplexity",
        *names,
        "back: relearning",
        "unrelated",
        "8 bits",
        "4 bits",
        "zip",
        "R and Q",
        "forget quality",
        "minutes",
        "peak GB",
    ]
    lines = []
    for key in dict.fromkeys((row["loss"], row["mask"]) for row in rows):
        group = [row for row in rows if (row["loss"], row["mask"]) == key]

        def mean(value: Any, scale: float = 100, group: list[dict[str, Any]] = group) -> str:
            known = [scale * value(row) for row in group if value(row) is not None]
            return f"{fmean(known):.1f}" if known else "-"

        zips = ", ".join(
            f"1/{1 / one['ratio']:.0f}: {'-' if one['gap'] is None else format(100 * one['gap'], '.1f')}"
            for one in group[0]["zipped"]
        )
        lines.append(
            [
                ", ".join(key),
                mean(lambda row: row["steps_taken"], 1),
                mean(lambda row: row["goal"]),
                *(mean(lambda row, key=key: row[key]) for key in ("forget", "retain", "held_out", "lookalike")),
                f"{mean(lambda row: row['perplexity_before'], 1)} -> {mean(lambda row: row['perplexity'], 1)}",
                *(
                    f"{mean(lambda row, name=name: row['tasks']['before'][name])} -> "
                    f"{mean(lambda row, name=name: row['tasks']['after'][name])}"
                    for name in names
                ),
                mean(lambda row: row["relearnt"]),
                mean(lambda row: row["unrelated"]),
                *(mean(lambda row, bits=bits: row["rounding"][bits]["gap"]) for bits in ("8", "4")),
                zips,
                mean(lambda row: row["robustness"], 1),
                f"{fmean(row['forget_quality'] for row in group):.2g}",
                mean(lambda row: row["seconds"], 1 / 60),
                mean(lambda row: row["peak_bytes"], 1e-9),
            ]
        )
    return Table(header, lines)
