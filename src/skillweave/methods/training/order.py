"""The order in which examples are trained on: seeded, the same on any number of processes, with little padding."""

from __future__ import annotations

import random
from collections.abc import Sequence

from skillweave.artefact import digest

_BATCHES_A_WINDOW = 8


def stage_seed(seed: int, name: str) -> int:
    """A seed of its own for each stage, the same on every machine and number of processes."""
    return int(digest([seed, name])[:7], 16)


def batch_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """Indices of the examples of all steps, one after the other: ``steps * batch_size`` of them.

    ``lengths`` (n,) in tokens. Every example is used once before any is used again. Examples are shuffled, then
    sorted by length within windows of eight batches, so that a batch holds rows of like length; the batches of a
    window are shuffled again, and within a batch the longest come first, so that micro-batches are even too.
    Raises ``ValueError`` where there are no examples.
    """
    if not lengths:
        raise ValueError("no examples to order")
    rng = random.Random(seed)
    wanted = steps * batch_size
    stream: list[int] = []
    while len(stream) < wanted:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        stream.extend(epoch)
    order: list[int] = []
    window = batch_size * _BATCHES_A_WINDOW
    for start in range(0, wanted, window):
        rows = sorted(stream[start : min(start + window, wanted)], key=lambda index: -lengths[index])
        batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        rng.shuffle(batches)
        order.extend(index for batch in batches for index in batch)
    return order
