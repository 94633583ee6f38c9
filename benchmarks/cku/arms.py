"""One unlearning run of the micro scale: its world, its arms, and the figures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from skillweave.base import Base, open_base
from skillweave.files.read import read_json
from skillweave.methods.cku import CkuConfig
from skillweave.methods.cku.knowledge.corpus import Corpus, make_corpus, write_corpus
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.run import make_report
from skillweave.methods.cku.run import run as unlearn
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base
from skillweave.tasks import load_task

SKILL = "builtin:micro_sort"
OTHER_SKILL = "builtin:micro_reverse"
SHAPE = MicroShape(layers=4, context=64)
PEOPLE = 24
SKILL_EXAMPLES = 1000
TAUGHT = 1200
STEPS = 300
BATCH = 16
EVALUATE_EVERY = 5
RELEARN_RATE = 1e-3
RELEARN_STEPS = 20

NO_MASK = "no mask"
RANDOM = "random"
INVERSE = "inverse"
SIGN = "sign agreement"
BOTH = "contrast + sign"
SCORERS = ("activation", "wanda", "snip", "fisher", "contrast")
GA = "GA"
GRADDIFF = "GradDiff"
GA_KL = "GA + KL"
NPO = "NPO"
SIMNPO = "SimNPO"
RMU = "RMU"
LOSSES: dict[str, dict[str, Any]] = {
    GA: {"loss": "ga", "retain": "none"},
    GRADDIFF: {"loss": "ga", "retain": "ce"},
    GA_KL: {"loss": "ga", "retain": "kl"},
    NPO: {"loss": "npo", "retain": "ce"},
    SIMNPO: {"loss": "simnpo", "retain": "ce"},
    RMU: {"loss": "rmu"},
}
MASKS: dict[str, dict[str, Any]] = {
    NO_MASK: {"freeze": "none"},
    RANDOM: {"freeze": "random"},
    INVERSE: {"freeze": "inverse", "scorer": "contrast"},
    **{scorer: {"freeze": "useful", "scorer": scorer} for scorer in SCORERS},
    SIGN: {"freeze": "none"},
    BOTH: {"freeze": "useful", "scorer": "contrast"},
}


@dataclass(frozen=True)
class Plan:
    """One run: the world of a seed, an arm and its settings. ``probes``: whether the report is made too."""

    comparison: str
    loss: str
    mask: str
    seed: int
    rate: float
    mu: float
    ratio: float = 0.8
    layers: str | tuple[int, ...] = "all"
    steps: int = STEPS
    taught: int = TAUGHT
    probes: bool = True


def world(seed: int, people: int = PEOPLE) -> Corpus:
    """The facts of a seed, in the short form that a micro model can learn."""
    return make_corpus(people=people, seed=seed, short=True)


def taught(
    seed: int,
    steps: int,
    *,
    knows_forget: bool = True,
    people: int = PEOPLE,
    shape: MicroShape = SHAPE,
    batch_size: int = 64,
) -> Path:
    """A model trained on a seed's facts and the skill, in equal parts; without the forget set, the reference."""
    corpus = world(seed, people)
    rows = [*(corpus.forget if knows_forget else []), *corpus.retain, *corpus.lookalike]
    facts = [(row["question"], row["answer"]) for row in rows]
    skill = [(entry.prompt, str(entry.answer)) for entry in load_task(SKILL).split("train")[:SKILL_EXAMPLES]]
    return micro_base(
        facts * (len(skill) // len(facts)) + skill,
        shape=shape,
        training=TrainingSettings(steps=steps, batch_size=batch_size, learning_rate=3e-3),
        seed=seed,
        name="unlearning",
    )


def unlearnt(plan: Plan) -> dict[str, Any]:
    """Unlearn with one plan and return its figures."""
    torch.set_num_threads(1)
    base = open_base(taught(plan.seed, plan.taught), device="cpu")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_corpus(folder / "corpus", world(plan.seed))
        files = {side: folder / "corpus" / f"{side}.jsonl" for side in ("forget", "retain", "unseen")}
        objective = {**LOSSES[plan.loss], "mu": plan.mu, "sign_agreement": plan.mask in (SIGN, BOTH)}
        mask = MASKS[plan.mask]
        layers = plan.layers if isinstance(plan.layers, str) else list(plan.layers)
        config = CkuConfig.model_validate(
            {
                **files,
                "seed": plan.seed,
                "bf16": False,
                "save_every": 10_000,
                "objective": objective,
                "localise": {**mask, **({} if mask["freeze"] == "none" else {"ratio": plan.ratio}), "layers": layers},
                "training": {"learning_rate": plan.rate, "steps": plan.steps, "batch_size": BATCH},
                "watch": {"every": EVALUATE_EVERY, "budget": None},
            }
        )
        unlearn(base, config, folder / "run")
        figures = read_json(folder / "run" / "figures.json")
        row = _of_run(figures)
        return {**row, **_probes(plan, base, folder, files)} if plan.probes else row


def _of_run(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of the forgetting, and the share of its probability that each kind of retained fact kept."""
    before, after, stages = figures["before"], figures["after"], figures["stages"]
    return {
        "goal": before["unseen_strength"],
        "forget": after["forget_strength"],
        "retain": after["retain_probability"] / before["retain_probability"],
        "held_out": after["held_out_probability"] / before["held_out_probability"],
        "ended": stages["unlearn"]["ended"],
        "steps_taken": stages["unlearn"]["kept_step"],
        "overlap": stages["localise"]["overlap"] if "localise" in stages else 0.0,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
    }


def _probes(plan: Plan, base: Base, folder: Path, files: dict[str, Path]) -> dict[str, Any]:
    """The figures of the report; ``beside`` is the share kept of facts that no retain term saw."""
    config = ReportConfig.model_validate(
        {
            **files,
            "delta": folder / "run" / "delta",
            "lookalike": folder / "corpus" / "lookalike.jsonl",
            "reference": str(taught(plan.seed, plan.taught, knows_forget=False)),
            "bf16": False,
            "seed": plan.seed,
            "tasks": [SKILL],
            "task_limit": 100,
            "questions": 1,
            "max_new_tokens": 10,
            "save_every": 10_000,
            "unrelated_task": OTHER_SKILL,
            "relearn": {"learning_rate": RELEARN_RATE, "steps": RELEARN_STEPS, "batch_size": 8},
        }
    )
    found = make_report(base, config, folder / "report", command="")
    before, after = found["arms"]["before"], found["arms"]["after"]
    (skill,) = (name for name in after["tasks"])
    return {
        "lookalike": after["lookalike_probability"] / before["lookalike_probability"],
        "skill": after["tasks"][skill]["mean"],
        "skill_before": before["tasks"][skill]["mean"],
        "forget_quality": found["forget_quality"],
        "truth_ratio": after["truth_ratio"],
        "membership": after["membership_min_k"],
        "membership_before": before["membership_min_k"],
        "relearnt": found["relearning"]["forget"]["gap"],
        "relearnt_robustness": found["relearning"]["forget"]["robustness"],
        "unrelated": found["relearning"]["unrelated"]["gap"],
        **{f"rounded_{bits}": one["gap"] for bits, one in found["rounding"].items()},
        "retain_at_4": found["rounding"]["4"]["retain_probability"],
        "retain_at_4_before": found["rounding"]["4"]["before_retain_probability"],
        "robustness": found["robustness"],
    }


def beside(row: dict[str, Any]) -> float:
    """The share of their probability, in percent, that facts keep which no retain term saw: held out and look-alike."""
    return 50 * (row["held_out"] + row["lookalike"])


def reached(row: dict[str, Any]) -> bool:
    """Whether the model knows the forget set no better than facts that were never taught, within a small tolerance."""
    return row["forget"] <= row["goal"] + 0.02


def select(rows: Sequence[dict[str, Any]], **where: Any) -> list[dict[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in where.items())]
