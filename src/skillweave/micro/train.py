"""A micro base: a model trained from scratch on examples, kept in the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from skillweave.artefact import atomic_folder, write_json
from skillweave.base.cache import cache_folder
from skillweave.base.chat import Prompt
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.files.lock import claim
from skillweave.files.recover import settle
from skillweave.methods.training.order import batch_order
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import TrainingSettings
from skillweave.micro.model import MicroShape, micro_model
from skillweave.micro.tokenizer import micro_tokenizer

_VERSION = 2  # of what is written: a change of it, or of how it comes about, needs a new number


def micro_base(
    examples: Sequence[tuple[Prompt, str]], *, shape: MicroShape, training: TrainingSettings, seed: int,
    name: str = "micro", words: Sequence[str] = (),
) -> Path:  # fmt: skip
    """The Hugging Face folder of a model trained from scratch on ``examples``, the loss on the answers only.

    Trained once: the same arguments and library versions find it in the cache; of processes that start at once, one
    trains. On one machine the same arguments give the same bits (float32, one thread of the CPU). ``micro.json`` in
    the folder holds the settings, the versions and the figures of the training. ``words`` are tokens beside the
    characters. An example that is longer than ``shape.context`` is a :class:`UserError`.
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
    # The folder appears whole or not at all (atomic_folder), so its being there is enough.
    settle(target)
    if not target.is_dir():
        with claim(target, waiting=f"another process trains {name}; waiting for it"):
            if not target.is_dir():
                with atomic_folder(target) as folder:
                    figures = _train(folder, examples, shape, training, seed, name, words)
                    write_json(folder / "micro.json", {**facts, "figures": figures})
    return target


def _train(
    folder: Path, examples: Sequence[tuple[Prompt, str]], shape: MicroShape, training: TrainingSettings, seed: int,
    name: str, words: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Train a new model and write it with its tokenizer into ``folder``; the figures of the training."""
    from skillweave.methods.training.sft import AnswerTrainer, encode, row_length
    from skillweave.methods.training.trainer import fit, quiet, trainer_arguments

    tokenizer = micro_tokenizer(words=words)
    rows = encode(tokenizer, examples, shape.context)
    if not rows or len(rows) < len(examples):
        raise UserError(
            f"{name}: {len(examples) - len(rows)} of {len(examples)} examples are longer than the model's context of "
            f"{shape.context} tokens, and at least one example is needed"
        )
    steps = training.steps_for(len(rows))
    order = batch_order([row_length(row) for row in rows], training.batch_size, steps, seed)
    processes = Processes()
    with TemporaryDirectory() as scratch, quiet(), _one_thread():
        arguments = trainer_arguments(
            training, processes, folder=Path(scratch), steps=steps, seed=seed, bf16=False, device="cpu",
            save_every=steps, gradient_checkpointing=False,
        )  # fmt: skip
        model = micro_model(shape, seed, len(words))
        figures = fit(AnswerTrainer(model, tokenizer, arguments, rows, order), f"{name}: training", processes)
        model.config.use_cache = True  # TRL switches it off, and whoever samples from the folder wants it
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return figures


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Threads cost a micro model more than they give, and sums in other pieces would be other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
