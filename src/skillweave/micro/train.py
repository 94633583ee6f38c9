"""Trains a micro base from scratch on examples, and keeps it in the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from skillweave.artefact import atomic_folder, write_json
from skillweave.base.chat import Prompt
from skillweave.errors import UserError
from skillweave.files.cache import cache_folder
from skillweave.files.hashes import digest
from skillweave.files.lock import claim
from skillweave.files.recover import settle
from skillweave.methods.training.order import batch_order
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import TrainingSettings
from skillweave.methods.training.sft import AnswerTrainer, encode, row_length
from skillweave.methods.training.trainer import fit, quiet, trainer_arguments
from skillweave.micro.model import MicroShape, micro_model
from skillweave.micro.tokenizer import micro_tokenizer

_VERSION = 2
"""The version of the written folder. Raise it when the content of the folder or the training changes."""


def micro_base(
    examples: Sequence[tuple[Prompt, str]],
    *,
    shape: MicroShape,
    training: TrainingSettings,
    seed: int,
    name: str = "micro",
    words: Sequence[str] = (),
) -> Path:
    """The Hugging Face folder of a model trained from scratch on ``examples``; the loss is on the answers only.

    - The model is trained once: the same arguments and library versions find it in the cache. If several processes
      start at the same time, one of them trains and the others wait.
    - On one machine the same arguments give the same bits (float32, one CPU thread).
    - ``words`` are tokens beside the characters.
    - ``micro.json`` in the folder has the settings, the versions and the figures of the training.
    - Raises :class:`UserError` if an example is longer than ``shape.context``, or if there is none.
    """
    facts = {
        "version": _VERSION,
        "shape": shape.model_dump(),
        "training": training.model_dump(),
        "seed": seed,
        "examples": digest([list(example) for example in examples]),
        **({"words": list(words)} if words else {}),
        "versions": {package: version(package) for package in ("torch", "transformers", "trl")},
    }
    target = cache_folder() / "micro" / f"{name}-{digest(facts)}"
    # atomic_folder writes the folder completely or not at all, so it is enough that the folder exists.
    settle(target)
    if not target.is_dir():
        with claim(target, waiting=f"another process trains {name}; waiting for it"):
            if not target.is_dir():
                with atomic_folder(target) as folder:
                    figures = _train(folder, examples, shape, training, seed, name, words)
                    write_json(folder / "micro.json", {**facts, "figures": figures})
    return target


def _train(
    folder: Path,
    examples: Sequence[tuple[Prompt, str]],
    shape: MicroShape,
    training: TrainingSettings,
    seed: int,
    name: str,
    words: Sequence[str],
) -> dict[str, Any]:
    """Train a new model, write it with its tokenizer into ``folder``, and return the figures of the training."""
    tokenizer = micro_tokenizer(words=words)
    rows = encode(tokenizer, examples, shape.context)
    if not rows or len(rows) < len(examples):
        raise UserError(
            f"{name}: {len(examples) - len(rows)} of {len(examples)} examples are longer than the model's context of "
            f"{shape.context} tokens; all must fit, and at least one example is needed: shorten them, or raise context"
        )
    steps = training.steps_for(len(rows))
    order = batch_order([row_length(row) for row in rows], training.batch_size, steps, seed)
    processes = Processes()
    with TemporaryDirectory() as scratch, quiet(), _one_thread():
        arguments = trainer_arguments(
            training,
            processes,
            folder=Path(scratch),
            steps=steps,
            seed=seed,
            bf16=False,
            device="cpu",
            save_every=steps,
            gradient_checkpointing=False,
        )
        model = micro_model(shape, seed, len(words))
        figures = fit(AnswerTrainer(model, tokenizer, arguments, rows, order), f"{name}: training", processes)
        model.config.use_cache = True  # TRL switches it off, but sampling from the folder needs it
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return figures


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: a micro model is slower on several, and sums split differently give other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
