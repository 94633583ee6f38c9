"""Train the factors of a student, and keep those that come nearest to the specialist on held-out prompts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from skillweave.base.safetensors_io import read_tensors, write_tensors
from skillweave.errors import UserError
from skillweave.progress import bar, console
from skillweave.skillzip.refine.adam import adam_step, moments
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.factors import rounded, spread
from skillweave.skillzip.refine.forward import Row, passes
from skillweave.skillzip.refine.loss import answer_kl, answer_tv
from skillweave.skillzip.refine.student import Student
from skillweave.skillzip.refine.teacher import TeacherRow
from skillweave.skillzip.steps import rounded_codes

CHECKPOINT = "refinement.safetensors"
_MEASUREMENTS = 5
"""How often a training measures the held-out prompts, besides before its first step."""
_SAVED = ("factors", "best", "first", "second")
_SECONDS = 60.0
"""A kill costs at most the steps of this time, and the step that is running."""
_WARM_UP = 5
"""The rate rises linearly over these first steps [ours]: the second moments are of few gradients then."""

Factors = dict[str, torch.Tensor]
AnswerLogits = Callable[[Sequence[Row]], torch.Tensor]
"""Rows -> the logits (n, V) of all answer tokens."""


class Divergence(NamedTuple):
    """How far a model is from the specialist: means of an answer token."""

    kl: float
    """KL(specialist || model), in nats"""
    tv: float
    """the total variation distance, in [0, 1]"""


class Measurement(NamedTuple):
    """The divergence on the held-out prompts after some steps."""

    step: int
    kl: float
    tv: float


@dataclass
class Progress:
    """The state of a training: everything that a resumed one needs."""

    factors: Factors
    """the float factors that Adam changes"""
    best: Factors
    """the float factors at the best measurement"""
    losses: list[float] = field(default_factory=list)
    """the KL of each step's batch, in nats a token"""
    curve: list[Measurement] = field(default_factory=list)
    first: Factors = field(default_factory=dict)
    second: Factors = field(default_factory=dict)
    """the moments of the gradients of all factors"""
    coarser: float = 1.0
    """how many times as large as in the pack the steps of coded factors are, so that it stays within its bytes"""
    best_coarser: float = 1.0
    """the same at the best measurement"""

    @property
    def step(self) -> int:
        """The number of steps done."""
        return len(self.losses)

    @property
    def damping(self) -> float:
        """The share of the rate that is left: it halves with each measurement no better than the best before it."""
        values = [measurement.tv for measurement in self.curve]
        return 0.5 ** sum(value >= min(values[:at]) for at, value in enumerate(values) if at)

    @property
    def best_point(self) -> Measurement:
        """The measurement with the least total variation distance; of equal ones the first."""
        return min(self.curve, key=lambda measurement: measurement.tv)

    def stopped(self, patience: int | None) -> bool:
        """Return whether the last ``patience`` measurements were all no better than an earlier one."""
        since = len(self.curve) - 1 - self.curve.index(self.best_point) if self.curve else 0
        return patience is not None and since >= patience


def train(
    student: Student,
    rows: Sequence[TeacherRow],
    held_out: Sequence[TeacherRow],
    config: RefineConfig,
    most_steps: int,
    folder: Path,
    coarseness: Callable[[Factors], float] = lambda _: 1.0,
) -> Progress:
    """Train the factors of ``student`` on ``rows`` for ``most_steps``, and return the progress at the end.

    * A step computes the KL with rounded factors, and applies the gradient of the rounded factors to the float ones
      (the straight-through estimate). What is measured is therefore the pack as it would be written.
    * Coded factors begin at random places of the ranges that round to their codes (:func:`factors.spread`).
    * The step (:mod:`~skillweave.skillzip.refine.adam`) is relative to each factor's root mean square. It rises over
      the first steps, and falls linearly to 0.
    * The better of two measurements is the one with the smaller total variation distance [ours]. Of 48 held-out
      prompts, two answers that the specialist itself got wrong had two thirds of the KL, whatever the others did.
    * After a measurement that is no better than the best before it, the training goes back to the factors of the best
      one, with half the rate [ours]: the right rate depends on how exact the pack already is.
    * The held-out prompts are measured before the first step and at most five times during the training, the last
      time at its end.
    * ``coarseness`` says how many times as large the steps of coded factors must become for the pack to stay within its
      bytes. It is asked before each measurement, so what is measured fits.
    * The progress is saved in ``folder``. A resumed training has the same losses as one without interruption.
    * If a number is no longer finite, the training ends there, and says so.
    """
    device = next(student.model.parameters()).device
    entries = student.trainable
    start = student.float_factors()
    sizes = {key: float(factor.square().mean().sqrt()) if factor.numel() else 0.0 for key, factor in start.items()}
    progress = _load(folder / CHECKPOINT, device) or _begun(start, student.steps(1.0), config.seed)
    order = batches(len(rows), config.batch_size, most_steps, config.seed)
    interval = math.ceil(most_steps / _MEASUREMENTS)
    current: Factors = {}

    def set_rounded() -> None:
        steps = student.steps(progress.coarser)
        for key, factor in progress.factors.items():
            current[key] = rounded(factor, entries[key.rpartition(".")[0]], steps.get(key)).requires_grad_()

    def measure() -> None:
        progress.coarser = coarseness(progress.factors)
        set_rounded()
        progress.curve.append(Measurement(progress.step, *divergence(student, held_out)))
        if progress.best_point.step == progress.step:
            progress.best = {key: factor.clone() for key, factor in progress.factors.items()}
            progress.best_coarser = progress.coarser
        else:
            _back_to_best(progress)

    with student.running(current), bar("refining", most_steps) as advance, torch.enable_grad():
        set_rounded()
        if not progress.curve:
            measure()
            if not math.isfinite(progress.curve[0].kl):
                raise UserError(
                    f"the KL from the pack to the specialist is {progress.curve[0].kl}, so the pack cannot be refined: "
                    "the base, the specialist or the pack gives no probabilities"
                )
        advance(progress.step, note=_note(progress))
        saved = time.monotonic()
        while progress.step < most_steps and not progress.stopped(config.patience):
            loss = _backward(student, [rows[index] for index in order[progress.step]])
            rate = config.learning_rate * progress.damping * _schedule(progress.step, most_steps)
            progress.losses.append(loss)
            for key, factor in progress.factors.items():
                gradient = current[key].grad
                if gradient is not None:  # an expert that no prompt of the batch went to has none
                    moved = progress.first[key], progress.second[key]
                    adam_step(key, factor, gradient, *moved, step=progress.step, rate=rate * sizes[key])
            if not _finite(loss, progress.factors):
                console.print(
                    f"  the refinement ends at step {progress.step} of {most_steps}, because its numbers are no "
                    "longer finite: lower learning_rate",
                    soft_wrap=True,
                )
                break
            due = progress.step % interval == 0 or progress.step == most_steps
            if due:
                measure()
            set_rounded()
            if due or time.monotonic() - saved > _SECONDS:
                _save(folder / CHECKPOINT, progress)
                saved = time.monotonic()
            advance(1, note=_note(progress))
    return progress


def _begun(start: Factors, steps: Factors, seed: int) -> Progress:
    """Return the progress before the first step, with coded factors at random places that round to their codes."""
    generator = torch.Generator().manual_seed(seed)
    factors = {
        key: spread(rounded_codes(factor, steps[key]), generator) * steps[key] if key in steps else factor.clone()
        for key, factor in start.items()
    }
    progress = Progress(factors, start)
    for key, factor in factors.items():
        progress.first[key], progress.second[key] = moments(key, factor)
    return progress


def _schedule(step: int, steps: int) -> float:
    """Return the share of the rate in a step, counted from 0."""
    return min(1.0, (step + 1) / _WARM_UP) * (1 - step / steps)


def _back_to_best(progress: Progress) -> None:
    """Give the factors the values of the best measurement, and forget the direction in which they were going."""
    progress.coarser = progress.best_coarser
    for key, factor in progress.factors.items():
        factor.copy_(progress.best[key])
        progress.first[key].zero_()


def batches(count: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the row indices of each step. Every row is used once before any is used twice."""
    source = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * size:
        order += source.sample(range(count), count)
    return [order[at * size : (at + 1) * size] for at in range(steps)]


def divergence(student: Student, rows: Sequence[TeacherRow]) -> Divergence:
    """Return how far the student, which is running, is from the specialist on the answers of ``rows``."""
    return divergence_of(student.answer_logits, student.model, rows)


@torch.no_grad()
def divergence_of(answer_logits: AnswerLogits, model: Any, rows: Sequence[TeacherRow]) -> Divergence:
    """Return the same for anything that gives logits (n, V) of answer tokens, as ``model`` does."""
    kl = tv = 0.0
    for piece in _pieces(model, rows):
        parts = _compared(answer_logits, piece)
        kl, tv = kl + float(answer_kl(*parts).sum()), tv + float(answer_tv(*parts).sum())
    tokens = sum(row.tokens for row in rows)
    return Divergence(kl / tokens, tv / tokens)


def _backward(student: Student, rows: Sequence[TeacherRow]) -> float:
    """Add up the gradients of the mean KL of an answer token, and return that mean."""
    tokens, total = sum(row.tokens for row in rows), 0.0
    for piece in _pieces(student.model, rows):
        loss = answer_kl(*_compared(student.answer_logits, piece)).sum() / tokens
        loss.backward()
        total += float(loss.detach())
    return total


def _pieces(model: Any, rows: Sequence[TeacherRow]) -> list[list[TeacherRow]]:
    return [[rows[at] for at in piece] for piece in passes(model, [len(row.ids) for row in rows])]


def _compared(
    answer_logits: AnswerLogits, rows: Sequence[TeacherRow]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the logits of all answer tokens of the rows, and what is kept of the specialist's distributions."""
    logits = answer_logits([(row.ids, row.prompt) for row in rows])
    top, logs, rest = (
        torch.cat(parts).to(logits.device) for parts in zip(*((r.top, r.logs, r.rest) for r in rows), strict=True)
    )
    return logits, top, logs, rest


def _finite(loss: float, factors: Mapping[str, torch.Tensor]) -> bool:
    # The largest scale of a row is a float16, and its codes are at least 7.
    largest = 7 * torch.finfo(torch.float16).max
    return math.isfinite(loss) and all(bool((factor.abs() < largest).all()) for factor in factors.values())


def _save(file: Path, progress: Progress) -> None:
    """Write one file that has everything: a kill leaves the old one or the new one."""
    tensors = {
        "losses": torch.tensor(progress.losses, dtype=torch.float64),
        "curve": torch.tensor(progress.curve, dtype=torch.float64).reshape(-1, 3),
        "coarser": torch.tensor([progress.coarser, progress.best_coarser], dtype=torch.float64),
    }
    for part in _SAVED:
        tensors |= {f"{part}/{key}": tensor for key, tensor in getattr(progress, part).items()}
    write_tensors(file, tensors)


def _load(file: Path, device: torch.device) -> Progress | None:
    """Return the progress that :func:`_save` wrote, or None if there is no file."""
    if not file.exists():
        return None
    parts: dict[str, Factors] = {}
    for name, tensor in read_tensors(file).items():
        part, _, key = name.partition("/")
        parts.setdefault(part, {})[key] = tensor
    coarser, best_coarser = parts["coarser"][""].tolist()
    return Progress(
        **{part: {key: value.to(device) for key, value in parts[part].items()} for part in _SAVED},
        losses=parts["losses"][""].tolist(),
        curve=[Measurement(int(step), kl, tv) for step, kl, tv in parts["curve"][""].tolist()],
        coarser=coarser,
        best_coarser=best_coarser,
    )


def _note(progress: Progress) -> str:
    loss = f"KL {progress.losses[-1]:.4f}, " if progress.losses else ""
    return f"{loss}held out {progress.curve[-1].kl:.4f}"
