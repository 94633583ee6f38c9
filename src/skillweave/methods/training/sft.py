"""Supervised training on known good answers with TRL's SFTTrainer; the loss is on the answers' tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import TrainerCallback

from skillweave.base.chat import Answer, Prompt, answer_ids, prompt_ids
from skillweave.errors import UserError
from skillweave.methods.training.head import install_answer_head
from skillweave.methods.training.held_out import LOSS, EarlyStopping, evaluation_arguments, held_out_loss
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import AnswerSettings, SupervisedSettings, TrainingSettings
from skillweave.methods.training.trainer import QuietTrainer
from skillweave.methods.training.trl_hooks import SFTConfig, SFTTrainer
from skillweave.methods.training.turns import Turns, turn_labels


class AnswerTrainer(QuietTrainer, SFTTrainer):
    """SFTTrainer on rows of :func:`encode`, which scores only the labelled tokens, on a CPU too.

    - ``rows``: all examples; ``order``: the indices of the examples of all steps, one step after the other.
    - ``held_out``: rows whose loss is computed during the training, as ``evaluation`` says.
    - ``evaluation``: when to compute it and when to stop; None: never.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        arguments: dict[str, Any],
        rows: Sequence[dict],
        order: list[int],
        *,
        held_out: Sequence[dict] = (),
        evaluation: AnswerSettings | None = None,
    ):
        self._held_out = list(held_out) if evaluation is not None else []
        self._pad = tokenizer.pad_token_id
        callbacks: list[TrainerCallback] | None = None
        if evaluation is not None and self._held_out:
            arguments = {**arguments, **evaluation_arguments(evaluation, arguments["max_steps"])}
            callbacks = [EarlyStopping(evaluation.patience)]
        super().__init__(
            model=model,
            args=SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_list([rows[index] for index in order]),
            eval_dataset=Dataset.from_list(self._held_out) if self._held_out else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        install_answer_head(model)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss: a mean over all tokens, so it is the same for any number of batches and processes."""
        size = self.args.per_device_train_batch_size
        loss = held_out_loss(self.model, self._held_out, self._pad, size, self.accelerator.autocast)
        # Every process computes it, because a sharded model needs all of them. The first one's value counts for all.
        metrics = {LOSS: broadcast_object_list([loss])[0]}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def encode(
    tokenizer: Any, examples: Sequence[tuple[Prompt, Answer]], max_length: int, turns: Turns = "last"
) -> list[dict[str, list[int]]]:
    """Rows with ``input_ids`` and ``labels``, both (T,); examples longer than ``max_length`` are left out.

    The tokens are exactly those of :func:`prompt_ids` and then :func:`answer_ids`: what generation sees, and what it
    should write. The labels are -100 on the prompt; with ``turns="all"`` the assistant's turns in the prompt are
    labelled too (:func:`turn_labels`).
    """
    rows = []
    for prompt, answer in examples:
        before, after = prompt_ids(tokenizer, prompt), answer_ids(tokenizer, answer, prompt)
        if len(before) + len(after) <= max_length:
            labels = turn_labels(tokenizer, prompt) if turns == "all" else [-100] * len(before)
            rows.append({"input_ids": before + after, "labels": labels + after})
    return rows


def row_length(row: dict[str, list[int]]) -> int:
    """The number of tokens of a row."""
    return len(row["input_ids"])


def train_on_answers(
    run: Run[Any, Any],
    folder: Path,
    settings: TrainingSettings,
    examples: Sequence[tuple[Prompt, Answer]],
    held_out: Sequence[tuple[Prompt, Answer]] = (),
) -> dict[str, Any]:
    """Train the run's policy on prompts with their answers, as one stage in ``folder``; returns its figures.

    ``held_out`` examples are never trained on. If the settings are :class:`AnswerSettings`, they say how the loss on
    these examples is used.
    """
    turns = settings.turns if isinstance(settings, SupervisedSettings) else "last"
    rows = encode(run.tokenizer, examples, run.max_length, turns)
    run.tell_too_long(folder.name, len(examples) - len(rows), len(examples), "examples")
    figures = train_on_rows(run, folder, settings, rows, encode(run.tokenizer, held_out, run.max_length, turns))
    return {"examples": len(rows), "too_long": len(examples) - len(rows), **figures}


def train_on_rows(
    run: Run[Any, Any],
    folder: Path,
    settings: TrainingSettings,
    rows: Sequence[dict[str, list[int]]],
    held_out: Sequence[dict[str, list[int]]],
) -> dict[str, Any]:
    """:func:`train_on_answers` on rows of :func:`encode`.

    Raises :class:`UserError` if ``patience`` is set and there are no held-out rows.
    """
    evaluation = settings if isinstance(settings, AnswerSettings) else None
    held_out = list(held_out[: evaluation.held_out]) if evaluation is not None else []
    if evaluation is not None and evaluation.patience is not None and not held_out:
        raise UserError(
            f"{folder.name}: patience needs a held-out loss, and the task's calibration split has no example with an "
            "answer that fits: set splits.calibration in the task, or patience to null"
        )
    figures = run.train(
        folder,
        settings,
        rows,
        [row_length(row) for row in rows],
        lambda model, arguments, order: AnswerTrainer(
            model, run.tokenizer, arguments, rows, order, held_out=held_out, evaluation=evaluation
        ),
    )
    if "held_out_loss" not in figures:
        return figures
    if figures["held_out_loss"] > figures["held_out_best"]:
        run.say(
            f"{folder.name}: the held-out loss was lowest at step {figures['best_step']} "
            f"({figures['held_out_best']:.3g}) and rose to {figures['held_out_loss']:.3g}: set patience to stop there "
            "and keep the best weights"
        )
    return {"held_out": len(held_out), **figures}
