"""The order of batches: every example is used once before any is used twice, and little is padded."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from skillweave.methods.training import batch_order
from skillweave.methods.training.answers import choose_entries
from skillweave.tasks import Entry

SIZES = [
    (examples, batch, steps)
    for examples in (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 40, 100, 128, 257, 700)
    for batch in (1, 3, 4, 16)
    for steps in (1, 2, 13, 40)
]


def lengths_of(examples: int) -> list[int]:
    rng = random.Random(examples)
    return [int(rng.lognormvariate(4.5, 0.5)) + 10 for _ in range(examples)]


def plain_order(examples: int, wanted: int, seed: int) -> list[int]:
    """Shuffled epochs one after the other: what a data loader does that does not sort."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        order += rng.sample(range(examples), examples)
    return order[:wanted]


def in_batches(order: list[int], batch: int) -> list[list[int]]:
    return [order[at : at + batch] for at in range(0, len(order), batch)]


def padding(order: list[int], lengths: list[int], batch: int) -> float:
    """Share of the tokens of all batches that are padding."""
    whole = sum(batch * max(lengths[index] for index in rows) for rows in in_batches(order, batch))
    return 1 - sum(lengths[index] for index in order) / whole


@pytest.mark.parametrize(("examples", "batch", "steps"), SIZES)
def test_no_example_comes_twice_before_all_came_once(examples, batch, steps):
    order = batch_order(lengths_of(examples), batch, steps, seed=3)
    assert len(order) == steps * batch
    seen: Counter[int] = Counter(dict.fromkeys(range(examples), 0))
    for index in order:
        assert seen[index] == min(seen.values())
        seen[index] += 1
    assert seen == Counter(plain_order(examples, len(order), 0)) or len(order) % examples
    for rows in in_batches(order, batch):
        times = Counter(rows)
        if examples >= batch:
            assert max(times.values()) == 1
        else:
            assert len(times) == examples
            assert max(times.values()) - min(times.values()) <= 1


def test_the_order_is_seeded_and_examples_are_needed():
    lengths = lengths_of(30)
    assert batch_order(lengths, 4, 20, 3) == batch_order(lengths, 4, 20, 3) != batch_order(lengths, 4, 20, 4)
    with pytest.raises(ValueError, match="no examples"):
        batch_order([], 4, 1, 0)


@pytest.mark.parametrize("examples", [32, 40, 64])
def test_other_examples_meet_in_each_epoch(examples):
    """Sorted as a whole, a small set would be cut into the same batches again and again."""
    order = batch_order(lengths_of(examples), 16, 40, 0)
    batches = [frozenset(rows) for rows in in_batches(order, 16)]
    assert len(set(batches)) > 0.9 * len(batches)


@pytest.mark.parametrize(("examples", "most"), [(5000, 0.19), (512, 0.17), (200, 0.25)])
def test_far_less_is_padded_than_without_sorting(examples, most):
    """Measured on these lengths: windows that crossed epochs padded 17%, 15% and 15%; unsorted batches pad half."""
    lengths, steps = lengths_of(examples), max(60, examples // 16)
    assert padding(batch_order(lengths, 16, steps, 0), lengths, 16) < most
    assert padding(plain_order(examples, 16 * steps, 0), lengths, 16) > 0.4


def test_within_a_batch_the_longest_come_first():
    lengths = lengths_of(320)
    for rows in in_batches(batch_order(lengths, 16, 20, 0), 16):
        assert [lengths[index] for index in rows] == sorted((lengths[index] for index in rows), reverse=True)


@pytest.mark.parametrize(("prompts", "asked"), [(10, 4), (7, 7), (5, 9), (1, 3), (12, 5)])
def test_rounds_ask_every_prompt_once_before_any_twice(prompts, asked):
    entries = [Entry(f"d{number}", "p", "a", {}) for number in range(prompts)]
    seen: Counter[str] = Counter({entry.id: 0 for entry in entries})
    for number in range(9):
        for entry in choose_entries(entries, asked, number, 0):
            assert seen[entry.id] == min(seen.values())
            seen[entry.id] += 1
