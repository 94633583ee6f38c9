"""Supervised training on known good answers, the loss on the answer's tokens only. On TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset

from skillweave.base.chat import Answer, Prompt, answer_ids, prompt_ids
from skillweave.errors import UserError
from skillweave.methods.training.from_trl import SFTConfig, SFTTrainer
from skillweave.methods.training.head import install_answer_head
from skillweave.methods.training.held_out import LOSS, HeldOut, held_out_loss, look_arguments
from skillweave.methods.training.settings import AnswerSettings, SupervisedSettings, TrainingSettings
from skillweave.methods.training.trainer import QuietTrainer
from skillweave.methods.training.turns import Turns, turn_labels

if TYPE_CHECKING:
    from skillweave.methods.training.run import Run


class AnswerTrainer(QuietTrainer, SFTTrainer):
    """SFTTrainer on rows that are tokenised already, scoring answers only on a CPU too.

    With ``held_out`` rows the loss on them is looked at on the way, as ``looks`` says (:class:`AnswerSettings`).
    """

    def __init__(
        self, model: Any, tokenizer: Any, arguments: dict[str, Any], rows: Sequence[dict], order: list[int], *,
        held_out: Sequence[dict] = (), looks: AnswerSettings | None = None,
    ):  # fmt: skip
        self._held_out, self._pad = (list(held_out) if looks is not None else []), tokenizer.pad_token_id
        watching = looks is not None and bool(self._held_out)
        if looks is not None and watching:
            arguments = {**arguments, **look_arguments(looks, arguments["max_steps"])}
        super().__init__(
            model=model,
            args=SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_list([rows[index] for index in order]),
            eval_dataset=Dataset.from_list(self._held_out) if watching else None,
            processing_class=tokenizer,
            callbacks=[HeldOut(looks.patience)] if looks is not None and watching else None,
        )
        install_answer_head(model)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss, a mean over all tokens: the same in however many batches and processes."""
        size = self.args.per_device_train_batch_size
        loss = held_out_loss(self.model, self._held_out, self._pad, size, self.accelerator.autocast)
        # Every process computes it, for a model that is cut up needs all of them; the first one's decides for all.
        metrics = {LOSS: broadcast_object_list([loss])[0]}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def encode(
    tokenizer: Any, examples: Sequence[tuple[Prompt, Answer]], max_length: int, turns: Turns = "last"
) -> list[dict[str, list[int]]]:
    """Rows ``input_ids`` and ``labels`` (-100 on the prompt), both (T,); examples longer than ``max_length`` left out.

    The tokens are exactly those of :func:`prompt_ids` then :func:`answer_ids`, which generation sees and should write.
    With ``turns="all"`` the assistant's turns in the prompt are labelled too, as :func:`turn_labels` says.
    """
    rows = []
    for prompt, answer in examples:
        before, after = prompt_ids(tokenizer, prompt), answer_ids(tokenizer, answer, prompt)
        if len(before) + len(after) <= max_length:
            labels = turn_labels(tokenizer, prompt) if turns == "all" else [-100] * len(before)
            rows.append({"input_ids": before + after, "labels": labels + after})
    return rows


def row_length(row: dict[str, list[int]]) -> int:
    """Tokens a row takes in a batch."""
    return len(row["input_ids"])


def train_on_answers(
    run: Run[Any, Any], folder: Path, settings: TrainingSettings, examples: Sequence[tuple[Prompt, Answer]],
    held_out: Sequence[tuple[Prompt, Answer]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train the run's policy on prompts with their answers, as one stage of it; its figures.

    ``held_out`` are examples that are only looked at, as the settings say, if they are :class:`AnswerSettings`.
    """
    turns = settings.turns if isinstance(settings, SupervisedSettings) else "last"
    rows = encode(run.tokenizer, examples, run.max_length, turns)
    run.tell_too_long(folder.name, len(examples) - len(rows), len(examples), "examples")
    figures = train_on_rows(run, folder, settings, rows, encode(run.tokenizer, held_out, run.max_length, turns))
    return {"examples": len(rows), "too_long": len(examples) - len(rows), **figures}


def train_on_rows(
    run: Run[Any, Any], folder: Path, settings: TrainingSettings, rows: Sequence[dict[str, list[int]]],
    held_out: Sequence[dict[str, list[int]]],
) -> dict[str, Any]:  # fmt: skip
    """:func:`train_on_answers` on rows as :func:`encode` makes them.

    Raises :class:`UserError` where ``patience`` is set and nothing is held out.
    """
    looks = settings if isinstance(settings, AnswerSettings) else None
    kept_out = list(held_out[: looks.held_out]) if looks is not None else []
    if looks is not None and looks.patience is not None and not kept_out:
        raise UserError(
            f"{folder.name}: patience needs a held-out loss, and the task's calibration split has no example with an "
            "answer that fits: set splits.calibration in the task, or patience to null"
        )
    figures = run.train(
        folder, settings, rows, [row_length(row) for row in rows],
        lambda model, arguments, order: AnswerTrainer(
            model, run.tokenizer, arguments, rows, order, held_out=kept_out, looks=looks
        ),
    )  # fmt: skip
    if "held_out_loss" not in figures:
        return figures
    if figures["held_out_loss"] > figures["held_out_best"]:
        run.say(
            f"{folder.name}: the held-out loss was lowest at step {figures['best_step']} "
            f"({figures['held_out_best']:.3g}) and rose to {figures['held_out_loss']:.3g}: set patience to stop there "
            "and keep the best weights"
        )
    return {"held_out": len(kept_out), **figures}
