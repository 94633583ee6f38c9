"""The loss on answers that a supervised training does not see: looks on the way, early stopping, the best weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import TrainerCallback

from skillweave.base.batching import by_length, padded
from skillweave.methods.training.head import answer_log_probs
from skillweave.methods.training.settings import AnswerSettings

LOSS = "eval_loss"
"""The held-out loss in the trainer's log, under the name that transformers and what it reports to know."""


class HeldOut(TrainerCallback):
    """Ends a training whose held-out loss has not fallen for ``patience`` looks; also looks after the last step.

    All that is known of earlier looks is read from the trainer's log, which a checkpoint holds, so a training that was
    killed and goes on decides as an unbroken one.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look after the last step, wherever it falls."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where the best look lies ``patience`` looks back."""
        losses = [entry[LOSS] for entry in state.log_history if LOSS in entry]
        if self._patience is not None and len(losses) - 1 - losses.index(min(losses)) >= self._patience:
            control.should_training_stop = True
            # A run that goes on from a checkpoint of this step would not know that the end is reached, and train on.
            # From the one before, it takes this step again and ends as it did.
            control.should_save = False


def look_arguments(settings: AnswerSettings, steps: int) -> dict[str, Any]:
    """The trainer's arguments for looks; with ``patience`` there is a checkpoint at each, to go back to the best."""
    every = settings.looks_every(steps)
    arguments: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": every}
    if settings.patience is None:
        return arguments
    best = {"load_best_model_at_end": True, "metric_for_best_model": LOSS, "greater_is_better": False}
    return {**arguments, **best, "save_steps": every}


@torch.no_grad()
def held_out_loss(
    model: Any, rows: Sequence[dict[str, list[int]]], pad: int, size: int, around: Callable[[], AbstractContextManager]
) -> float:
    """The mean negative log-likelihood of a labelled token of ``rows`` (``input_ids``, ``labels``), in nats.

    ``size`` rows go through the model at once; the mean is over all tokens, so the result does not depend on it.
    ``model`` bears a scoring head; ``around()`` is entered around its calls.
    """
    total, tokens = 0.0, 0
    training = model.training
    model.eval()
    try:
        for piece in by_length([len(row["input_ids"]) for row in rows], size):
            inputs = _batch([rows[index] for index in piece], pad, model.device)
            with around():
                total -= float(answer_log_probs(model, inputs).double().sum())
            tokens += int((inputs["labels"][:, 1:] != -100).sum())
    finally:
        model.train(training)
    return total / tokens


def _batch(rows: Sequence[dict[str, list[int]]], pad: int, device: Any) -> dict[str, torch.Tensor]:
    inputs = padded([([], row["input_ids"]) for row in rows], pad, device)
    labels = torch.full_like(inputs["labels"], -100)
    for at, row in enumerate(rows):
        labels[at, : len(row["labels"])] = torch.tensor(row["labels"])
    return {**inputs, "labels": labels}


def looks(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The looks of a trainer's log: ``step``, ``held_out_loss``, and the ``loss`` of the training step before it."""
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    return [
        {"step": entry["step"], "loss": losses[entry["step"]], "held_out_loss": entry[LOSS]}
        for entry in history
        if LOSS in entry
    ]
