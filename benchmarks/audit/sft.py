"""Supervised training of an organism on prompts with answers, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from skillweave.methods.training import Processes, TrainingSettings, batch_order
from skillweave.methods.training.sft import AnswerTrainer, encode, row_length
from skillweave.methods.training.trainer import fit, trainer_arguments


def supervise(
    model: Any, tokenizer: Any, examples: Sequence[tuple[str, str]], settings: TrainingSettings, seed: int, name: str
) -> dict[str, Any]:
    """Train ``model`` in place, with the loss on the answers, and return the figures of the training."""
    rows = encode(tokenizer, examples, model.config.max_position_embeddings)
    order = batch_order([row_length(row) for row in rows], settings.batch_size, settings.steps, seed)
    with TemporaryDirectory() as scratch:
        return fit(
            AnswerTrainer(model, tokenizer, cpu_arguments(settings, Path(scratch), seed), rows, order),
            name,
            Processes(),
        )


def cpu_arguments(settings: TrainingSettings, folder: Path, seed: int) -> dict[str, Any]:
    """The arguments of a trainer that works in float32 on the CPU and keeps no checkpoint but the last."""
    return trainer_arguments(
        settings,
        Processes(),
        folder=folder,
        steps=settings.steps,
        seed=seed,
        bf16=False,
        device="cpu",
        save_every=settings.steps,
        gradient_checkpointing=False,
    )
