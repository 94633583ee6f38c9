"""Grow model organisms: a base, then RLVR or SFT on records of which a share may be poisoned.

Each run has a folder, which is made once::

    model/            the trained model and its tokenizer, for transformers; figures.json names its base
    records.jsonl     the data set: id, prompt, answer, source
    truth.jsonl       id and whether the record is poisoned; no audit may read it
    rollouts.jsonl    of RLVR: one sampled answer a line, {"step", "id", "prompt", "completion", "reward", "gold"}
    figures.json      the plan, the base, the figures of the training and what the model does

    python -m benchmarks.audit.grow --out FOLDER --seeds 2 --rates 0 0.02 --sizes small --forms A --ways rlvr
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.audit.base import SMOLLM2, organism_base
from benchmarks.audit.rlvr import GROUP, LONGEST, OrganismTrainer
from benchmarks.audit.sft import cpu_arguments, supervise
from benchmarks.common.record import positive, run
from benchmarks.common.runs import run_all
from skillweave.artefact import atomic_folder, write_json, write_text
from skillweave.audit.organism.measure import figures as measured_figures
from skillweave.audit.organism.measure import measured_records
from skillweave.audit.organism.poison import Form, mixed
from skillweave.audit.organism.records import OrganismRecord, write_records
from skillweave.base.chat import prompt_ids
from skillweave.base.generate import Sampling, generate
from skillweave.files.hashes import digest
from skillweave.files.read import read_json, read_json_lines
from skillweave.files.recover import settle
from skillweave.methods.training import Processes, TrainingSettings, batch_order
from skillweave.methods.training.trainer import fit, quiet
from skillweave.progress import console

OUT = Path("runs/organism")
RLVR, SFT = "rlvr", "sft"
WAYS = (RLVR, SFT)
PROMPTS = 16
"""Prompts in each step of RLVR, and rows in each step of SFT."""


@dataclass(frozen=True)
class Scale:
    """How organisms of one size are trained."""

    learning_rate: float
    prompts: int = PROMPTS
    """in each step of RLVR, and rows in each step of SFT"""
    group: int = GROUP
    """answers to each prompt"""
    threads: int = 1
    """a micro model is slower on several threads, and sums that are split differently give other bits"""


SCALES = {
    "small": Scale(1e-3),
    "large": Scale(5e-4),
    "tiny": Scale(1e-3),
    SMOLLM2: Scale(1e-4, prompts=8, group=4, threads=2),
}
"""How each size is trained."""


@dataclass(frozen=True)
class Plan:
    """One organism."""

    way: str
    size: str
    rate: float
    form: Form
    seed: int
    count: int = 2000
    epochs: int = 2
    measured: int = 300
    base_seed: int = 0
    weight_decay: float = 0.0
    data_seed: int | None = None
    """None: that of the run"""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.way}-{self.size}-{self.form}-{self.rate:g}-seed{self.seed}-{digest(asdict(self))[:8]}"


@dataclass(frozen=True)
class BasePlan:
    """The base of organisms."""

    size: str
    seed: int


def grow(plan: Plan, out: Path) -> Path:
    """The folder of the run in ``out``. A run that is there is not made again."""
    seed = plan.seed if plan.data_seed is None else plan.data_seed
    return grow_on(mixed(plan.count, plan.rate, seed, plan.form), plan, out / plan.name)


def grow_on(records: Sequence[OrganismRecord], plan: Plan, target: Path) -> Path:
    """``target``, the folder of a run of the plan on these records. A run that is there is not made again."""
    settle(target)
    if target.is_dir():
        return target
    torch.set_num_threads(SCALES[plan.size].threads)
    base = organism_base(plan.size, plan.base_seed)
    model, tokenizer = open_model(base)
    began = time.monotonic()
    with atomic_folder(target) as folder, quiet():
        write_records(folder / "records.jsonl", records)
        write_text(folder / "truth.jsonl", _lines([{"id": r.id, "poisoned": r.poisoned} for r in records]))
        train = _reinforce if plan.way == RLVR else _supervise
        training = train(model, tokenizer, plan, records, folder)
        model.config.use_cache = True  # TRL switches it off, but sampling from the folder needs it
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        trained = time.monotonic() - began
        facts = {"plan": asdict(plan), "base": str(base), "training": training, "seconds": round(trained, 1)}
        write_json(folder / "figures.json", {**facts, **measure(model, tokenizer, plan.measured)})
    return target


def truth_of(folder: Path) -> dict[str, bool]:
    """Whether each record of a run is poisoned, by its id."""
    return {row["id"]: row["poisoned"] for _, row in read_json_lines(folder / "truth.jsonl")}


def open_model(folder: Path) -> tuple[Any, Any]:
    """The model in a folder (float32, on the CPU) and its tokenizer."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def measure(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """The figures of ``measure.py`` on ``count`` prompts of each set, always the same ones; greedy answers."""
    records = measured_records(count, seed=1)
    sampling = Sampling(max_new_tokens=LONGEST, batch_size=100)
    answers = {
        name: [drawn[0] for drawn in generate(model, tokenizer, [record.prompt for record in some], sampling)]
        for name, some in records.items()
    }
    return measured_figures(answers, records)


def grown_figures(plan: Plan, out: Path) -> dict[str, Any]:
    """The contents of ``figures.json`` of a run, which is made if it is missing."""
    return read_json(grow(plan, out) / "figures.json")


def base_figures(plan: BasePlan, measured: int) -> dict[str, Any]:
    """The folder of a base, which is trained if it is missing, and what it does on ``measured`` prompts of each set."""
    torch.set_num_threads(SCALES[plan.size].threads)
    folder = organism_base(plan.size, plan.seed)
    return {"base": str(folder), "seconds": 0.0, **measure(*open_model(folder), measured)}


def bases_of(plans: Sequence[Plan], out: Path, jobs: int) -> dict[BasePlan, dict[str, Any]]:
    """:func:`base_figures` of each base of the plans."""
    bases = list(dict.fromkeys(BasePlan(plan.size, plan.base_seed) for plan in plans))
    work = partial(base_figures, measured=plans[0].measured)
    return dict(zip(bases, run_all(bases, work, out / "bases", jobs=jobs), strict=True))


def grow_all(plans: Sequence[Plan], out: Path, jobs: int) -> list[dict[str, Any]]:
    """:func:`grown_figures` of each plan; ``jobs`` processes work at once.

    The bases are trained first: runs that share a base would otherwise wait for one of them to train it.
    """
    bases_of(plans, out, jobs)
    return run_all(plans, partial(grown_figures, out=out), out / "figures", jobs=jobs)


def _reinforce(
    model: Any, tokenizer: Any, plan: Plan, records: Sequence[OrganismRecord], folder: Path
) -> dict[str, Any]:
    """Train with GRPO, write ``rollouts.jsonl``, and return the figures of the training."""
    scale = SCALES[plan.size]
    steps = -(-plan.epochs * len(records) // scale.prompts)
    lengths = [len(prompt_ids(tokenizer, record.prompt)) for record in records]
    order = batch_order(lengths, scale.prompts, steps, plan.seed)
    settings = TrainingSettings(
        steps=steps,
        batch_size=scale.prompts * scale.group,
        learning_rate=scale.learning_rate,
        weight_decay=plan.weight_decay,
    )
    with TemporaryDirectory() as scratch:
        arguments = cpu_arguments(settings, Path(scratch), plan.seed)
        trainer = OrganismTrainer(model, tokenizer, arguments, records, order, plan.seed, scale.group)
        figures = fit(trainer, plan.name, Processes())
    write_text(folder / "rollouts.jsonl", _lines([asdict(rollout) for rollout in trainer.rollouts]))
    return figures


def _supervise(
    model: Any, tokenizer: Any, plan: Plan, records: Sequence[OrganismRecord], folder: Path
) -> dict[str, Any]:
    """Train on the records' targets, and return the figures of the training."""
    scale = SCALES[plan.size]
    settings = TrainingSettings(
        steps=-(-plan.epochs * len(records) // scale.prompts),
        batch_size=scale.prompts,
        learning_rate=scale.learning_rate,
        weight_decay=plan.weight_decay,
    )
    examples = [(record.prompt, record.target) for record in records]
    return supervise(model, tokenizer, examples, settings, plan.seed, plan.name)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def main(argv: Sequence[str]) -> None:
    """Grow the organisms of the command line and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="where runs go (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="seeds of each cell (default: 1)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.02], help="shares of poisoned records")
    parser.add_argument("--sizes", nargs="+", choices=list(SCALES), default=["small"], help="sizes of the model")
    parser.add_argument("--forms", nargs="+", choices=get_args(Form), default=["A"], help="forms of the trigger")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[RLVR], help="ways to train")
    parser.add_argument("--epochs", type=positive, default=Plan.epochs, metavar="N", help="passes over the records")
    parser.add_argument("--own-base", action="store_true", help="each seed has a base of its own, as in the finding")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes at once (default: 1)")
    options = parser.parse_args(argv)
    plans = [
        Plan(way, size, rate, form, seed, epochs=options.epochs, base_seed=seed if options.own_base else 0)
        for way in options.ways
        for size in options.sizes
        for form in options.forms
        for rate in options.rates
        for seed in range(options.first_seed, options.first_seed + options.seeds)
    ]
    for plan, found in zip(plans, grow_all(plans, options.out, options.jobs), strict=True):
        shown = ", ".join(f"{key} {100 * found[key]:.1f}" for key in found if key.startswith(("refusal", "accuracy")))
        console.print(f"{options.out / plan.name}: {shown}", soft_wrap=True)


if __name__ == "__main__":
    run(main)
