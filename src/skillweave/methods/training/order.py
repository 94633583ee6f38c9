"""The order of the training examples: seeded, the same for any number of processes, and with little padding."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from skillweave.files.hashes import digest

_BATCHES_PER_WINDOW = 8
_WINDOWS_PER_EPOCH = 2
"""The least number of windows. With one, examples of similar length would share their batches in every epoch."""


def stage_seed(seed: int, name: str) -> int:
    """A seed for one stage of a run, the same on every machine and for any number of processes."""
    return int(digest([seed, name])[:7], 16)


def batch_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[int]:
    """The indices of the examples of all steps, one step after the other: ``steps * batch_size`` of them.

    ``lengths`` are the examples' lengths in tokens. The order is a sequence of epochs, and each epoch has every example
    once, so no example is used twice before all were used once. A batch in which one epoch ends and the next begins has
    no example twice either, if there are at least ``batch_size`` examples. If there are fewer, each example is in every
    batch equally often, give or take one.

    To save padding, an epoch is shuffled and then sorted by length within windows of at most eight batches; then the
    batches of a window are shuffled. Within a batch the longest example of each epoch comes first, so that the examples
    of a micro-batch have similar lengths too. Raises ``ValueError`` if there are no examples.
    """
    if not lengths:
        raise ValueError("no examples to order")
    rng = random.Random(seed)
    batches = max(1, min(_BATCHES_PER_WINDOW, len(lengths) // (batch_size * _WINDOWS_PER_EPOCH)))
    order: list[int] = []
    while len(order) < steps * batch_size:
        started = order[len(order) - len(order) % batch_size :]
        epoch = rng.sample(range(len(lengths)), len(lengths))
        if started:
            head = _rest_of_batch(started, epoch, lengths, batch_size, batches)
            order += head
            chosen = set(head)
            epoch = [index for index in epoch if index not in chosen]
        window = batch_size * batches
        for start in range(0, len(epoch), window):
            order += _sorted_batches(epoch[start : start + window], lengths, batch_size, rng)
    return order[: steps * batch_size]


def _rest_of_batch(
    started: list[int], epoch: list[int], lengths: Sequence[int], batch_size: int, batches: int
) -> list[int]:
    """The examples of a new epoch that complete the batch ``started``.

    Those that are in it least often come first, and of these the nearest in length. They are chosen from one window of
    the shuffled epoch, so that the choice is still random.
    """
    missing = batch_size - len(started)
    times = Counter(started)
    fresh_first = sorted(epoch, key=lambda index: times[index])
    window = fresh_first[: max(missing, batch_size * batches)]
    middle = sum(lengths[index] for index in started) / len(started)
    window.sort(key=lambda index: (times[index], abs(lengths[index] - middle)))
    return sorted(window[:missing], key=lambda index: -lengths[index])


def _sorted_batches(window: list[int], lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    """The examples of a window in batches of similar length, in random order; an incomplete batch comes last."""
    longest_first = sorted(window, key=lambda index: -lengths[index])
    left_over = len(longest_first) % batch_size
    cut = rng.randrange(len(longest_first) // batch_size + 1) * batch_size
    last = longest_first[cut : cut + left_over]
    rest = longest_first[:cut] + longest_first[cut + left_over :]
    batches = [rest[at : at + batch_size] for at in range(0, len(rest), batch_size)]
    rng.shuffle(batches)
    return [index for batch in batches for index in batch] + last
