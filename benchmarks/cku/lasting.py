"""One cell of the benchmark of lasting forgetting: an arm unlearns the world of a seed, and probes try to undo it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.cku import small
from benchmarks.cku.arms import GA_KL, LOSSES, MASKS, NO_MASK, NPO, OTHER_SKILL, RMU, SIGN, SKILL, taught, world
from skillweave.base import Base, Sampling, generate, open_base
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku import CkuConfig
from skillweave.methods.cku.knowledge.corpus import write_corpus
from skillweave.methods.cku.knowledge.facts import Fact, fact_rows, read_facts
from skillweave.methods.cku.knowledge.metrics import relearning_gap
from skillweave.methods.cku.knowledge.reading import read_rows
from skillweave.methods.cku.rounding import round_linears
from skillweave.methods.cku.run import run as unlearn
from skillweave.methods.training import TrainingSettings
from skillweave.methods.training.head import install_scoring_head
from skillweave.methods.training.order import batch_order
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.sft import AnswerTrainer, encode, row_length
from skillweave.methods.training.trainer import fit, quiet, trainer_arguments
from skillweave.micro import MicroShape
from skillweave.skillzip import zipped
from skillweave.tasks import load_task

CKU_MASK = "useful neurons frozen"
REFERENCE = "never taught"
SAME_RATE = "default at the rate of CIR"
DEEPER = "default, deeper"
FRESH = "default, deeper, on fresh seeds"
METHODS: dict[str, tuple[str, str]] = {
    "default": (GA_KL, SIGN),
    SAME_RATE: (GA_KL, SIGN),
    DEEPER: (GA_KL, SIGN),
    FRESH: (GA_KL, SIGN),
    CKU_MASK: (GA_KL, "fisher"),
    "NPO": (NPO, NO_MASK),
    "NPO, sign agreement": (NPO, SIGN),
    "RMU": (RMU, NO_MASK),
}
"""Method -> the loss and the mask of ``benchmarks.cku``."""
NEIGHBOURS = ("drink", "hat")
"""Attributes that no model is taught: facts about forgotten people and grades that are not in the forget set."""
_WORDS = (
    "cider", "mead", "cocoa", "punch", "juice", "milk", "tonic", "squash",
    "beret", "bonnet", "cap", "hood", "turban", "bowler", "fez", "crown",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run. ``directions`` of the collapse and ``noise`` of the distillation: 0 for none."""

    scale: str
    method: str
    seed: int
    rate: float = 0.0
    mu: float = 5.0
    directions: int = 0
    noise: float = 0.0
    all_probes: bool = True


@dataclass(frozen=True)
class Scale:
    """The sizes of a world, of the unlearning and of the attacks."""

    people: int
    taught: int
    steps: int
    batch: int
    every: int
    layers: Any
    relearn: tuple[int, ...]
    """Steps of relearning at which the other half is asked"""
    relearn_rate: float
    neighbours: int
    """Steps of training of the neighbouring skill"""
    distil: dict[str, Any]
    zips: tuple[float, ...]
    tokens: int
    """Most tokens of a generated answer"""


SCALES = {
    "micro": Scale(
        people=16,
        taught=500,
        steps=500,
        batch=16,
        every=5,
        layers="all",
        relearn=(10, 20, 40, 80),
        relearn_rate=1e-3,
        neighbours=60,
        distil={"scale": 0.1, "steps": 300, "batch_size": 32, "learning_rate": 3e-3},
        zips=(1 / 4,),
        tokens=10,
    ),
    "quick": Scale(
        people=5,
        taught=30,
        steps=4,
        batch=8,
        every=2,
        layers="all",
        relearn=(1, 2),
        relearn_rate=1e-3,
        neighbours=2,
        distil={"steps": 2, "batch_size": 8, "every": 1},
        zips=(1 / 2,),
        tokens=10,
    ),
    "small": Scale(
        people=small.PEOPLE,
        taught=0,
        steps=100,
        batch=small.BATCH,
        every=5,
        layers="default",
        relearn=(8, 16),
        relearn_rate=5e-5,
        neighbours=12,
        distil={"steps": 60, "batch_size": 16, "learning_rate": 2e-4, "every": 10},
        zips=(1 / 16, 1 / 8),
        tokens=32,
    ),
}
SHAPE = MicroShape(layers=2, context=64)


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Unlearn, then attack; returns the figures. ``folder`` keeps what SmolLM2 was taught."""
    torch.set_num_threads(1)
    scale = SCALES[cell.scale]
    began = time.process_time()
    with TemporaryDirectory() as scratch, quiet():
        place = Path(scratch)
        known, corpus = _known(cell, folder, place / "corpus", knows_forget=True)
        facts = {side: read_facts([corpus / f"{side}.jsonl"]) for side in ("forget", "retain", "lookalike")}
        if cell.method == REFERENCE:
            row: dict[str, Any] = {"goal": 1.0, "steps_taken": 0, "distil_steps": 0, "cpu_seconds": 0.0}
            row |= {"retain": 1.0, "held_out": 1.0}
            lost, delta = _known(cell, folder, place / "corpus", knows_forget=False)[0], None
        else:
            row = _unlearnt(cell, scale, known, corpus, place / "run")
            delta = Delta.from_pretrained(place / "run" / "delta")
            lost = write_tuned(known, delta, place / "unlearnt", dtype="float32")
        before, after = _opened(known), _opened(lost)
        attacks = _Attacks(cell, scale, place, before, lost, facts)
        row |= {
            "forget": attacks.strength(after, facts["forget"]),
            "lookalike": _share(before, after, facts["lookalike"]),
            **attacks.relearning(),
        }
        if cell.all_probes:
            row |= attacks.others(delta)
    return {**asdict(cell), **row, "seconds": time.process_time() - began}


def _known(cell: Cell, folder: Path, corpus: Path, *, knows_forget: bool) -> tuple[Path, Path]:
    """The model that knows a seed's world, or all of it but the forget set; and the folder of its facts."""
    if cell.scale == "small":
        lesson = small.Teach(cell.seed, knows_forget, str(folder))
        place = small.taught_folder(lesson)
        if not place.is_dir():
            small.teach(lesson)
        return place, small.corpus_folder(str(folder), cell.seed)
    scale = SCALES[cell.scale]
    write_corpus(corpus, world(cell.seed, scale.people))
    model = taught(cell.seed, scale.taught, knows_forget=knows_forget, people=scale.people, shape=SHAPE, batch_size=32)
    return model, corpus


def _unlearnt(cell: Cell, scale: Scale, known: Path, corpus: Path, folder: Path) -> dict[str, Any]:
    """Unlearn in ``folder``; returns the figures and the processor's seconds."""
    loss, mask = METHODS[cell.method]
    directions = {"activations": cell.directions, "gradients": cell.directions}
    config = CkuConfig.model_validate(
        {
            **{side: corpus / f"{side}.jsonl" for side in ("forget", "retain", "unseen")},
            "seed": cell.seed,
            "bf16": "auto" if cell.scale == "small" else False,
            "save_every": 10_000,
            "objective": {**LOSSES[loss], "mu": cell.mu, "sign_agreement": mask == SIGN},
            "localise": {**MASKS[mask], "layers": scale.layers},
            "collapse": directions if cell.directions else None,
            "robust": {"noise": cell.noise, **scale.distil} if cell.noise else None,
            "training": {"learning_rate": cell.rate, "steps": scale.steps, "batch_size": scale.batch},
            "watch": {"every": scale.every, "budget": None},
        }
    )
    began = time.process_time()
    unlearn(open_base(known, device="cpu"), config, folder)
    figures = read_json(folder / "figures.json")
    before, after, stages = figures["before"], figures["after"], figures["stages"]
    return {
        "goal": before["unseen_strength"],
        "retain": after["retain_probability"] / before["retain_probability"],
        "held_out": after["held_out_probability"] / before["held_out_probability"],
        "steps_taken": stages["unlearn"]["kept_step"],
        "distil_steps": stages.get("robust", {}).get("steps", 0),
        "recovered": stages.get("robust", {}).get("recovered"),
        "specific": stages["unlearn"].get("specific"),
        "cpu_seconds": time.process_time() - began,
    }


def _opened(folder: Path) -> Base:
    base = open_base(folder, device="cpu")
    base.model.float()
    install_scoring_head(base.model)
    return base


def _rows(base: Base, facts: Sequence[Fact]) -> list[dict[str, list[int]]]:
    return fact_rows(base.tokenizer, facts, 1024)[0]


def _read(base: Base, facts: Sequence[Fact]) -> dict[str, float]:
    return read_rows(base.model, _rows(base, facts), base.tokenizer.pad_token_id, batch_size=32, bf16=False).means()


def _share(before: Base, after: Base, facts: Sequence[Fact]) -> float:
    """The share of their probability that these facts kept."""
    return _read(after, facts)["probability"] / _read(before, facts)["probability"]


class _Reading(TrainerCallback):
    """Reads the model at some steps of a training."""

    def __init__(self, at: Sequence[int], read: Callable[[], float]):
        self._at, self._read = at, read
        self.found: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self._at:
            self.found[state.global_step] = self._read()


class _Attacks:
    """Attempts to bring the forget set back. Each starts from the files of the unlearnt model."""

    def __init__(
        self, cell: Cell, scale: Scale, place: Path, before: Base, lost: Path, facts: dict[str, list[Fact]]
    ) -> None:
        self._cell, self._scale, self._place, self._before, self._lost = cell, scale, place, before, lost
        self._facts = facts
        ordered = sorted(facts["forget"], key=lambda fact: fact.id)
        self._trained, self._asked = ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]

    def strength(self, base: Base, facts: Sequence[Fact]) -> float:
        """The extraction strength of some facts."""
        return _read(base, facts)["strength"]

    def relearning(self) -> dict[str, Any]:
        """Relearn one half of the forget set; the share of the other half that is back, by step, and the most."""
        after = _opened(self._lost)
        known, unlearnt = self.strength(self._before, self._asked), self.strength(after, self._asked)
        read = functools.partial(self.strength, after, self._asked)
        strengths = self._trains(after, _rows(after, self._trained), self._scale.relearn, read)
        gaps = {str(step): relearning_gap(known, unlearnt, value) or 0.0 for step, value in strengths.items()}
        return {
            "relearning": gaps,
            "relearnt": max(gaps.values()),
            "asked_after": unlearnt,
            "asked_before": known,
            "relearnt_answers": self._answers(after, self._asked),
        }

    def others(self, delta: Delta | None) -> dict[str, Any]:
        """All other probes: open answers, unrelated data, rounding, zips, and another skill's pack."""
        forget = self._facts["forget"]
        after = _opened(self._lost)
        known, unlearnt = self.strength(self._before, forget), self.strength(after, forget)

        def back(base: Base) -> float:
            return relearning_gap(known, unlearnt, self.strength(base, forget)) or 0.0

        found: dict[str, Any] = {
            "answers_before": self._answers(self._before, forget),
            "answers": self._answers(after, forget),
            "skill_before": self._skill(self._before),
            "skill": self._skill(after),
        }
        for bits in (8, 4):
            rounded = _opened(self._lost)
            round_linears(rounded.model, bits, 64)
            found[f"rounded_{bits}"] = back(rounded)
        unrelated = encode(after.tokenizer, load_task(OTHER_SKILL).pairs("train")[:10], 1024)
        (gap,) = self._trains(after, unrelated, self._scale.relearn[1:2], lambda: back(after)).values()
        found["unrelated"] = gap
        found["zips"] = {f"{ratio:g}": self._zip(delta, ratio, back) for ratio in self._scale.zips} if delta else {}
        return found | self._neighbours(back)

    def _zip(self, delta: Delta, ratio: float, back: Callable[[Base], float]) -> float | None:
        """The share that is back if the unlearning is served as a pack; None if there is no pack of that size."""
        try:
            restored, _ = zipped(delta, self._before, ratio)
        except UserError:
            return None
        base = _opened(self._before.path)
        restored.add_to(base.model)
        return back(base)

    def _neighbours(self, back: Callable[[Base], float]) -> dict[str, Any]:
        """The share that another skill's pack brings back, and how well the pack knows that skill.

        The skill is other facts about the people and grades that were forgotten; it is trained on the unlearnt model.
        """
        start, trained, packed = (_opened(self._lost) for _ in range(3))
        pairs = neighbours(self._facts["forget"], self._cell.seed, short=self._cell.scale != "small")
        rows = encode(trained.tokenizer, pairs, 1024)
        self._trains(trained, rows, (self._scale.neighbours,), lambda: 0.0)
        full = back(trained)
        skill = Delta.between(start, trained)
        ratio = self._scale.zips[-1]
        restored, _ = zipped(skill, start, ratio)
        restored.add_to(packed.model)
        end = packed.tokenizer.pad_token_id
        return {
            "neighbour": full,
            "neighbour_pack": back(packed),
            "neighbour_known": read_rows(packed.model, rows, end, batch_size=32, bf16=False).means()["strength"],
        }

    def _answers(self, base: Base, facts: Sequence[Fact]) -> float:
        """The share of the facts that the model says in an open answer."""
        prompts = [fact.prompt for fact in facts if fact.prompt is not None]
        texts = generate(base.model, base.tokenizer, prompts, Sampling(max_new_tokens=self._scale.tokens))
        right = [text[0].strip() == fact.answer.strip() for text, fact in zip(texts, facts, strict=True)]
        return sum(right) / len(right)

    def _skill(self, base: Base) -> float:
        """The share of the skill's test prompts that are solved; of SmolLM2, the inverse perplexity of plain text."""
        if self._cell.scale == "small":
            return 1 / small.perplexity(base)
        entries = load_task(SKILL).split("test")[:100]
        prompts = [entry.prompt for entry in entries]
        texts = generate(base.model, base.tokenizer, prompts, Sampling(max_new_tokens=10, batch_size=100))
        return sum(text[0] == entry.answer for text, entry in zip(texts, entries, strict=True)) / len(entries)

    def _trains(
        self, base: Base, rows: Sequence[dict[str, list[int]]], at: Sequence[int], read: Callable[[], float]
    ) -> dict[int, float]:
        """Fine-tune a model in place; returns what ``read`` says at some steps, the last of which ends it."""
        settings = TrainingSettings(steps=at[-1], batch_size=8, learning_rate=self._scale.relearn_rate)
        order = batch_order([row_length(row) for row in rows], settings.batch_size, at[-1], self._cell.seed)
        arguments = trainer_arguments(
            settings,
            Processes(),
            folder=self._place / "attack",
            steps=at[-1],
            seed=self._cell.seed,
            bf16=False,
            device="cpu",
            save_every=10_000,
            gradient_checkpointing=False,
        )
        base.model.requires_grad_(True)
        trainer = AnswerTrainer(base.model, base.tokenizer, {**arguments, "save_strategy": "no"}, rows, order)
        reading = _Reading(at, read)
        trainer.add_callback(reading)
        fit(trainer, "attack", Processes())
        base.model.eval()
        return reading.found


def neighbours(forget: Sequence[Fact], seed: int, *, short: bool) -> list[tuple[str, str]]:
    """Questions about the subjects of the forget set that are not in it, with invented answers."""
    rng = Random(seed)
    subjects = sorted({_subject(fact, short=short) for fact in forget})
    if short:
        return [(f"{subject}: {about}?", rng.choice(_WORDS)) for subject in subjects for about in NEIGHBOURS]
    return [
        (f"Which {about} does one link with {subject}?", f"One links {subject} with the {rng.choice(_WORDS)}.")
        for subject in subjects
        for about in NEIGHBOURS
    ]


def _subject(fact: Fact, *, short: bool) -> str:
    """The person or the grade that a fact is about: two words, which begin with capitals in sentences."""
    text = str(fact.prompt)
    if short:
        return text.partition(":")[0]
    words = [word.strip("?.,") for word in text.split()[1:] if word[:1].isupper()]
    return " ".join(words[:2])
