"""Splits of a generator: one stream of distinct prompts, test drawn first, then calibration, then train.

Asking for more training examples therefore moves no test or calibration entry.
"""

from __future__ import annotations

from collections.abc import Callable

from skillweave.base.chat import Prompt
from skillweave.errors import UserError
from skillweave.tasks.spec import Splits
from skillweave.tasks.task import Entry, near_id, prompt_id

Example = tuple[Prompt, str | None, dict]
"""Prompt, gold answer, metadata."""

TRAIN = 800
_PATIENCE = 400  # repeats in a row before the generator counts as exhausted: at 2 % unseen left, 3 in 10,000 err
_SEED_GAP = 1_000_000


def seed_of(seed: int, index: int) -> int:
    """The seed of example ``index``. Streams of different seeds lie apart: none is another one shifted."""
    return (seed * _SEED_GAP + index) % 2**32


def draw(example: Callable[[int], Example], splits: Splits, task: str) -> tuple[dict[str, list[Entry]], int]:
    """The splits, and how many repeated prompts were passed over; ``example(index)`` is a pure function.

    Raises :class:`UserError` where the generator knows too few distinct prompts.
    """
    train = TRAIN if splits.train is None else splits.train
    need = splits.test + splits.calibration + train
    found: dict[str, Entry] = {}
    index = repeats = in_a_row = 0
    while len(found) < need:
        prompt, answer, metadata = example(index)
        index += 1
        # A generator can always draw another: near-copies are passed over too, so that no test prompt is one.
        near = near_id(prompt)
        if near not in found:
            found[near] = Entry(prompt_id(prompt), prompt, answer, metadata)
            in_a_row = 0
            continue
        repeats += 1
        in_a_row += 1
        if in_a_row == _PATIENCE:
            raise UserError(
                f"task '{task}' gave only {len(found)} distinct prompts in {index} draws; splits ask for {need} "
                f"({splits.test} test, {splits.calibration} calibration, {train} train). "
                "Set smaller splits, or settings of the generator that allow more variety"
            )
    entries = list(found.values())
    train_from = splits.test + splits.calibration
    return {
        "train": entries[train_from:],
        "calibration": entries[splits.test : train_from],
        "test": entries[: splits.test],
    }, repeats
