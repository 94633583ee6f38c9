"""The loss on answers that a supervised training does not see: evaluations, early stopping, the best weights."""

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
"""The key of the held-out loss in the trainer's log. Transformers and the reporting services know it by this name."""


class EarlyStopping(TrainerCallback):
    """Evaluates after the last step, and stops a training whose held-out loss has not fallen for a while.

    ``patience`` is the number of evaluations without a lower loss after which it stops; None: never. Everything about
    earlier evaluations is read from the trainer's log, which is part of a checkpoint, so a resumed training decides
    exactly as an unbroken one.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate after the last step, also between two regular evaluations."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if the best evaluation is ``patience`` evaluations old."""
        losses = [entry[LOSS] for entry in state.log_history if LOSS in entry]
        if self._patience is not None and len(losses) - 1 - losses.index(min(losses)) >= self._patience:
            control.should_training_stop = True
            # A run that resumed from a checkpoint of this step would not know that the training is over, and would
            # train on. From the checkpoint before, it repeats this step and stops again.
            control.should_save = False


def evaluation_arguments(settings: AnswerSettings, steps: int) -> dict[str, Any]:
    """The trainer's arguments for evaluations.

    With ``patience`` a checkpoint is saved at each, so that the trainer can return to the best one.
    """
    interval = settings.evaluation_interval(steps)
    arguments: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": interval}
    if settings.patience is None:
        return arguments
    best = {"load_best_model_at_end": True, "metric_for_best_model": LOSS, "greater_is_better": False}
    return {**arguments, **best, "save_steps": interval}


@torch.no_grad()
def held_out_loss(
    model: Any, rows: Sequence[dict[str, list[int]]], pad: int, size: int, around: Callable[[], AbstractContextManager]
) -> float:
    """The mean negative log-likelihood of a labelled token of ``rows``, in nats.

    - ``model``: has a scoring head (:func:`~skillweave.methods.training.head.install_scoring_head`).
    - ``rows``: ``input_ids`` and ``labels``, both (T,).
    - ``size``: how many rows go through the model at once. The mean is over all tokens, so the result does not depend
      on it.
    - ``around``: its context is entered around each call of the model, such as autocast.
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


def evaluations(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The evaluations in a trainer's log: ``step``, ``held_out_loss``, and the ``loss`` of that training step."""
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    return [
        {"step": entry["step"], "loss": losses[entry["step"]], "held_out_loss": entry[LOSS]}
        for entry in history
        if LOSS in entry
    ]
