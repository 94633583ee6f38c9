"""Train the factors of a student until the divergence on held-out prompts stops falling."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from skillweave.base.safetensors_io import read_tensors, write_tensors
from skillweave.errors import UserError
from skillweave.progress import bar, console
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.factors import rounded
from skillweave.skillzip.refine.forward import passes
from skillweave.skillzip.refine.loss import answer_kl
from skillweave.skillzip.refine.student import Student
from skillweave.skillzip.refine.teacher import TeacherRow

CHECKPOINT = "checkpoint.safetensors"
_MEASUREMENTS = 5
"""How often a training measures the held-out prompts, besides before its first step."""
_SECONDS = 60.0
"""A kill costs at most the steps of this time, and the step that is running."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter."""

Factors = dict[str, torch.Tensor]
AnswerLogits = Callable[[Sequence[tuple[Sequence[int], int]]], torch.Tensor]
"""Rows (token ids of prompt and answer, length of the prompt) -> the logits (n, V) of all answer tokens."""


@dataclass
class Progress:
    """The state of a training: everything that a resumed one needs."""

    factors: Factors
    """the float factors that Adam changes"""
    best: Factors
    """the float factors at the best measurement"""
    losses: list[float] = field(default_factory=list)
    """the KL of each step's batch, in nats a token"""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(steps done, KL on the held-out prompts in nats a token) of each measurement"""
    moments: dict[str, Factors] = field(default_factory=dict)
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
        values = [value for _, value in self.curve]
        return 0.5 ** sum(value >= min(values[:at]) for at, value in enumerate(values) if at)

    @property
    def best_point(self) -> tuple[int, float]:
        """The measurement with the lowest KL; of equal ones the first."""
        return min(self.curve, key=lambda point: point[1])

    def stopped(self, patience: int | None) -> bool:
        """Return whether the last ``patience`` measurements were all no better than an earlier one."""
        since = len(self.curve) - 1 - self.curve.index(self.best_point) if self.curve else 0
        return patience is not None and since >= patience


def train(
    student: Student,
    rows: Sequence[TeacherRow],
    held_out: Sequence[TeacherRow],
    config: RefineConfig,
    folder: Path,
    coarseness: Callable[[Factors], float] = lambda _: 1.0,
) -> Progress:
    """Train the factors of ``student`` on ``rows``, and return the progress at the end.

    * A step computes the loss with rounded factors, and applies the gradient of the rounded factors to the float ones
      (the straight-through estimate). What is measured is therefore the pack as it would be written.
    * The step of Adam is relative to each factor's root mean square, and falls linearly to 0.
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
    progress = _load(folder / CHECKPOINT, device) or Progress(
        start, {key: value.clone() for key, value in start.items()}
    )
    progress.factors = {key: progress.factors[key].requires_grad_() for key in start}
    optimizer = _adam(progress, sizes)
    order = batches(len(rows), config.batch_size, config.steps, config.seed)
    interval = math.ceil(config.steps / _MEASUREMENTS)
    current: Factors = {}

    def set_rounded() -> None:
        steps = student.steps(progress.coarser)
        for key, factor in progress.factors.items():
            own = rounded(factor.detach(), entries[key.rpartition(".")[0]], steps.get(key))
            current[key] = own.requires_grad_()

    def measure() -> None:
        progress.coarser = coarseness(progress.factors)
        set_rounded()
        progress.curve.append((progress.step, mean_kl(student, held_out)))
        if progress.best_point[0] == progress.step:
            progress.best = {key: factor.detach().clone() for key, factor in progress.factors.items()}
            progress.best_coarser = progress.coarser
        else:
            _back_to_best(progress, optimizer)

    with student.running(current), bar("refining", config.steps) as advance, torch.enable_grad():
        set_rounded()
        if not progress.curve:
            measure()
            if not math.isfinite(progress.curve[0][1]):
                raise UserError(
                    f"the KL from the pack to the specialist is {progress.curve[0][1]}, so the pack cannot be refined: "
                    "the base, the specialist or the pack gives no probabilities"
                )
        advance(progress.step, note=_note(progress))
        saved = time.monotonic()
        while progress.step < config.steps and not progress.stopped(config.patience):
            for group in optimizer.param_groups:
                group["lr"] = (
                    config.learning_rate * progress.damping * group["size"] * (1 - progress.step / config.steps)
                )
            loss = _backward(student, [rows[index] for index in order[progress.step]])
            for key, factor in progress.factors.items():
                factor.grad = current[key].grad
            optimizer.step()
            progress.losses.append(loss)
            if not _finite(loss, progress.factors):
                console.print(
                    f"  the refinement ends at step {progress.step} of {config.steps}, because its numbers are no "
                    "longer finite: lower learning_rate",
                    soft_wrap=True,
                )
                break
            due = progress.step % interval == 0 or progress.step == config.steps
            if due:
                measure()
            set_rounded()
            if due or time.monotonic() - saved > _SECONDS:
                _save(folder / CHECKPOINT, progress, optimizer)
                saved = time.monotonic()
            advance(1, note=_note(progress))
    return progress


@torch.no_grad()
def _back_to_best(progress: Progress, optimizer: torch.optim.Adam) -> None:
    """Give the factors the values of the best measurement, and forget the direction in which they were going."""
    progress.coarser = progress.best_coarser
    for key, factor in progress.factors.items():
        factor.copy_(progress.best[key])
        optimizer.state[factor]["exp_avg"].zero_()


def batches(count: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the row indices of each step. Every row is used once before any is used twice."""
    source = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * size:
        order += source.sample(range(count), count)
    return [order[at * size : (at + 1) * size] for at in range(steps)]


def mean_kl(student: Student, rows: Sequence[TeacherRow]) -> float:
    """Return the mean KL(specialist || student) of an answer token of ``rows``, in nats; the student is running."""
    return mean_kl_of(student.answer_logits, student.model, rows)


@torch.no_grad()
def mean_kl_of(answer_logits: AnswerLogits, model: Any, rows: Sequence[TeacherRow]) -> float:
    """Return the same for anything that gives logits (n, V) of answer tokens, as ``model`` does."""
    total = sum(float(_kl(answer_logits, piece)) for piece in _pieces(model, rows))
    return total / sum(row.tokens for row in rows)


def _backward(student: Student, rows: Sequence[TeacherRow]) -> float:
    """Add up the gradients of the mean KL of an answer token, and return that mean."""
    tokens, total = sum(row.tokens for row in rows), 0.0
    for piece in _pieces(student.model, rows):
        loss = _kl(student.answer_logits, piece) / tokens
        loss.backward()
        total += float(loss.detach())
    return total


def _pieces(model: Any, rows: Sequence[TeacherRow]) -> list[list[TeacherRow]]:
    return [[rows[at] for at in piece] for piece in passes(model, [len(row.ids) for row in rows])]


def _kl(answer_logits: AnswerLogits, rows: Sequence[TeacherRow]) -> torch.Tensor:
    """Return the sum of the KL over all answer tokens of the rows."""
    logits = answer_logits([(row.ids, row.prompt) for row in rows])
    top, logs, rest = (
        torch.cat(parts).to(logits.device) for parts in zip(*((r.top, r.logs, r.rest) for r in rows), strict=True)
    )
    return answer_kl(logits, top, logs, rest).sum()


def _finite(loss: float, factors: Mapping[str, torch.Tensor]) -> bool:
    # The largest scale of a row is a float16, and its codes are at least 7.
    largest = 7 * torch.finfo(torch.float16).max
    return math.isfinite(loss) and all(bool((factor.abs() < largest).all()) for factor in factors.values())


def _adam(progress: Progress, sizes: Mapping[str, float]) -> torch.optim.Adam:
    """Return Adam with one group for each factor, whose ``size`` scales its step, in the state of ``progress``."""
    groups = [{"params": [factor], "size": sizes[key]} for key, factor in progress.factors.items()]
    optimizer = torch.optim.Adam(groups, lr=1.0, betas=(0.9, 0.99))
    for key, moments in progress.moments.items():
        state = {"step": torch.tensor(float(progress.step)), **dict(zip(_MOMENTS, moments.values(), strict=True))}
        optimizer.state[progress.factors[key]] = state
    return optimizer


def _save(file: Path, progress: Progress, optimizer: torch.optim.Adam) -> None:
    """Write one file that has everything: a kill leaves the old one or the new one."""
    tensors = {
        "losses": torch.tensor(progress.losses, dtype=torch.float64),
        "curve": torch.tensor(progress.curve, dtype=torch.float64).reshape(-1, 2),
        "coarser": torch.tensor([progress.coarser, progress.best_coarser], dtype=torch.float64),
    }
    for key, factor in progress.factors.items():
        tensors[f"factors/{key}"] = factor.detach()
        tensors[f"best/{key}"] = progress.best[key]
        for moment in _MOMENTS:
            tensors[f"{moment}/{key}"] = optimizer.state[factor][moment]
    write_tensors(file, tensors)


def _load(file: Path, device: torch.device) -> Progress | None:
    """Return the progress that :func:`_save` wrote, or None if there is no file."""
    if not file.exists():
        return None
    parts: dict[str, Factors] = {}
    for name, tensor in read_tensors(file).items():
        part, _, key = name.partition("/")
        parts.setdefault(part, {})[key] = tensor
    on_device = {
        part: {key: value.to(device) for key, value in parts[part].items()} for part in ("factors", "best", *_MOMENTS)
    }
    return Progress(
        factors=on_device["factors"],
        best=on_device["best"],
        losses=parts["losses"][""].tolist(),
        curve=[(int(step), value) for step, value in parts["curve"][""].tolist()],
        coarser=parts["coarser"][""][0].item(),
        best_coarser=parts["coarser"][""][1].item(),
        moments={key: {moment: on_device[moment][key] for moment in _MOMENTS} for key in on_device["factors"]},
    )


def _note(progress: Progress) -> str:
    loss = f"KL {progress.losses[-1]:.4f}, " if progress.losses else ""
    return f"{loss}held out {progress.curve[-1][1]:.4f}"
