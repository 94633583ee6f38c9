"""Supervised training on known good answers, the loss on the answer's tokens only. On TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from skillweave.base.chat import Answer, Prompt, answer_ids, prompt_ids
from skillweave.methods.training.from_trl import SFTConfig, SFTTrainer
from skillweave.methods.training.head import install_answer_head
from skillweave.methods.training.settings import TrainingSettings
from skillweave.methods.training.trainer import HouseTrainer
from skillweave.methods.training.turns import Turns, turn_labels

if TYPE_CHECKING:
    from skillweave.methods.training.run import Run


class AnswerTrainer(HouseTrainer, SFTTrainer):
    """SFTTrainer on rows that are tokenised already, scoring answers only on a CPU too."""

    def __init__(self, model: Any, tokenizer: Any, arguments: dict[str, Any], rows: Sequence[dict], order: list[int]):
        super().__init__(
            model=model,
            args=SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_list([rows[index] for index in order]),
            processing_class=tokenizer,
        )
        install_answer_head(model)


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
    run: Run[Any, Any],
    folder: Path,
    settings: TrainingSettings,
    examples: Sequence[tuple[Prompt, Answer]],
    turns: Turns = "last",
) -> dict[str, Any]:
    """Train the run's policy on prompts with their answers, as one stage of it; its figures."""
    rows = encode(run.tokenizer, examples, run.max_length, turns)
    figures = run.train(
        folder, settings, rows, [row_length(row) for row in rows],
        lambda model, arguments, order: AnswerTrainer(model, run.tokenizer, arguments, rows, order),
    )  # fmt: skip
    return {"examples": len(rows), "too_long": len(examples) - len(rows), **figures}
