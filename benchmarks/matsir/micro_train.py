"""Train a micro model from scratch in a few minutes of one core, on prompts as well as answers.

The library's trainers learn answers alone. Here the prompt's tokens count a little too: a model that starts from
nothing then learns sooner what words, lists and functions look like. The output head is computed only where there is
something to learn. The result is kept in the cache, by everything that decides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from pydantic import Field

from skillweave.artefact import atomic_folder, write_json
from skillweave.base.chat import prompt_ids
from skillweave.config import Config
from skillweave.files.cache import cache_folder
from skillweave.files.hashes import digest
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.progress import bar


class MicroTraining(Config):
    """How the model is trained."""

    steps: int = Field(default=6000, ge=1, description="optimiser steps; the learning rate falls to 0 (cosine)")
    batch_size: int = Field(default=16, ge=1, description="rows in each step")
    learning_rate: float = Field(default=2e-3, gt=0, description="the highest learning rate")
    warmup: float = Field(default=0.05, ge=0, le=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(default=0.01, ge=0, description="of AdamW")
    prompt_weight: float = Field(default=0.3, ge=0, description="weight of a prompt's token; an answer's token has 1")


Row = tuple[list[int], list[int]]
"""The token ids of a prompt and of its answer with the end token."""


def train_micro(
    rows: Sequence[tuple[str, str]], words: Sequence[str], shape: MicroShape, training: MicroTraining, seed: int
) -> Path:
    """The folder of a model trained from scratch on prompts and answers; it is trained once, then found in the cache.

    One thread, float32: on one machine the same arguments give the same bits.
    """
    facts = {
        "shape": shape.model_dump(),
        "training": training.model_dump(),
        "seed": seed,
        "rows": digest([list(row) for row in rows]),
        "words": list(words),
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }
    target = cache_folder() / "micro" / f"induction-{digest(facts)}"
    if target.is_dir():
        return target
    tokenizer = micro_tokenizer(words=words)
    encoded = [
        (prompt_ids(tokenizer, prompt), [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
        for prompt, answer in rows
    ]
    fitting = [row for row in encoded if len(row[0]) + len(row[1]) <= shape.context]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = micro_model(shape, seed, len(words))
        losses = _train(model, fitting, training, Random(seed))
    finally:
        torch.set_num_threads(threads)
    with atomic_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        figures = {"left_out": len(encoded) - len(fitting), "loss_first": losses[0], "loss_last": losses[-1]}
        write_json(folder / "micro.json", {**facts, "figures": figures})
    return target


def _train(model: torch.nn.Module, rows: Sequence[Row], training: MicroTraining, random: Random) -> list[float]:
    """Train in place; return the mean loss of each hundred steps."""
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=training.weight_decay
    )
    order: list[list[Row]] = []
    losses, recent = [], 0.0
    with bar("induction: training", training.steps) as advance:
        for step in range(training.steps):
            order = order or _batches(rows, training.batch_size, random)
            for group in optimiser.param_groups:
                group["lr"] = training.learning_rate * _rate(step / training.steps, training.warmup)
            loss = _loss(model, order.pop(), training.prompt_weight)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            recent += loss.item()
            if (step + 1) % 100 == 0 or step + 1 == training.steps:
                losses.append(recent / (step % 100 + 1))
                recent = 0.0
                advance(step % 100 + 1, f"loss {losses[-1]:.3f}")
    model.eval()
    return losses


def _rate(progress: float, warmup: float) -> float:
    """The share of the highest learning rate: up in a line, down in a cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _batches(rows: Sequence[Row], size: int, random: Random) -> list[list[Row]]:
    """One epoch of batches in random order; rows of a batch have similar lengths, so little is padded."""
    places = list(range(len(rows)))
    random.shuffle(places)
    found = []
    for start in range(0, len(places), 64 * size):
        part = sorted(places[start : start + 64 * size], key=lambda place: len(rows[place][0]) + len(rows[place][1]))
        batches = [[rows[place] for place in part[at : at + size]] for at in range(0, len(part), size)]
        random.shuffle(batches)
        found += batches
    return found


def _loss(model: torch.nn.Module, batch: Sequence[Row], prompt_weight: float) -> torch.Tensor:
    """The weighted mean cross-entropy of the next tokens; (1,) with gradient."""
    longest = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    weights = torch.zeros(len(batch), longest)
    for number, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids[number, :end] = torch.tensor(prompt + answer)
        weights[number, 1 : len(prompt)] = prompt_weight
        weights[number, len(prompt) : end] = 1.0
    states = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets, weights = ids[:, 1:], weights[:, 1:]
    learnt = weights > 0
    entropy = F.cross_entropy(model.lm_head(states[learnt]), targets[learnt], reduction="none")
    return (entropy * weights[learnt]).sum() / weights.sum()
