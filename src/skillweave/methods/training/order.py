"""The order in which examples are trained on: seeded, the same on any number of processes, with little padding."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from skillweave.files.hashes import digest

_BATCHES_A_WINDOW = 8
_WINDOWS_AN_EPOCH = 2
"""At least: with a single window, rows of like length would meet in the same batches in every epoch."""


def stage_seed(seed: int, name: str) -> int:
    """A seed of its own for each stage, the same on every machine and number of processes."""
    return int(digest([seed, name])[:7], 16)


def batch_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """Indices of the examples of all steps, one after the other: ``steps * batch_size`` of them.

    ``lengths`` (n,) in tokens. The order is a sequence of epochs, and each epoch holds every example once, so no
    example is used twice before all were used once. A batch in which one epoch ends and the next begins holds no
    example twice either, if there are at least ``batch_size`` examples; with fewer, each example is in every batch
    equally often, give or take one.

    To save padding, an epoch is shuffled and then sorted by length within windows of at most eight batches; the batches
    of a window are shuffled again. Within a batch the longest example of each epoch comes first, so that micro-batches
    are even too. Raises ``ValueError`` where there are no examples.
    """
    if not lengths:
        raise ValueError("no examples to order")
    rng = random.Random(seed)
    batches = max(1, min(_BATCHES_A_WINDOW, len(lengths) // (batch_size * _WINDOWS_AN_EPOCH)))
    order: list[int] = []
    while len(order) < steps * batch_size:
        begun = order[len(order) - len(order) % batch_size :]
        epoch = rng.sample(range(len(lengths)), len(lengths))
        if begun:
            head = _rest_of_batch(begun, epoch, lengths, batch_size, batches)
            order += head
            chosen = set(head)
            epoch = [index for index in epoch if index not in chosen]
        window = batch_size * batches
        for start in range(0, len(epoch), window):
            order += _sorted_batches(epoch[start : start + window], lengths, batch_size, rng)
    return order[: steps * batch_size]


def _rest_of_batch(
    begun: list[int], epoch: list[int], lengths: Sequence[int], batch_size: int, batches: int
) -> list[int]:
    """Rows of a new epoch that complete the batch ``begun``: those that are in it least, and of these the nearest in
    length. They are chosen among one window of the shuffled epoch, so that chance still decides."""
    missing = batch_size - len(begun)
    times = Counter(begun)
    fresh_first = sorted(epoch, key=lambda index: times[index])
    window = fresh_first[: max(missing, batch_size * batches)]
    middle = sum(lengths[index] for index in begun) / len(begun)
    window.sort(key=lambda index: (times[index], abs(lengths[index] - middle)))
    return sorted(window[:missing], key=lambda index: -lengths[index])


def _sorted_batches(window: list[int], lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    """The rows of a window sorted by length and cut into batches, which are shuffled; a part of one comes last."""
    rows = sorted(window, key=lambda index: -lengths[index])
    part = len(rows) % batch_size
    cut = rng.randrange(len(rows) // batch_size + 1) * batch_size
    last, rows = rows[cut : cut + part], rows[:cut] + rows[cut + part :]
    whole = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    rng.shuffle(whole)
    return [index for batch in whole for index in batch] + last
