"""The splits of a generator: one stream of distinct prompts; test is drawn first, then calibration, then train.

So a larger train split does not change the test and calibration splits.
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
"""The size of the train split if the settings do not say."""
_PATIENCE = 400
"""Repeats in a row after which the generator counts as exhausted. If 2% of its prompts are still unseen, this is wrong
in 3 of 10,000 cases."""
_SEED_GAP = 1_000_000
"""The distance between the streams of two neighbouring seeds."""


def seed_of(seed: int, index: int) -> int:
    """The seed of example ``index``. The streams of different seeds do not overlap by a shift."""
    return (seed * _SEED_GAP + index) % 2**32


def draw(example: Callable[[int], Example], splits: Splits, task: str) -> tuple[dict[str, list[Entry]], int]:
    """The splits, and how many repeated prompts were skipped. ``example(index)`` is a pure function.

    Raises :class:`UserError` if the generator has too few distinct prompts.
    """
    train = TRAIN if splits.train is None else splits.train
    need = splits.test + splits.calibration + train
    by_near_id: dict[str, Entry] = {}
    index = repeats = in_a_row = 0
    while len(by_near_id) < need:
        prompt, answer, metadata = example(index)
        index += 1
        # A generator can always draw another prompt, so near-copies are skipped too: no test prompt is a near-copy.
        near = near_id(prompt)
        if near not in by_near_id:
            by_near_id[near] = Entry(prompt_id(prompt), prompt, answer, metadata)
            in_a_row = 0
            continue
        repeats += 1
        in_a_row += 1
        if in_a_row == _PATIENCE:
            raise UserError(
                f"task '{task}' gave only {len(by_near_id)} distinct prompts in {index} draws; splits ask for {need} "
                f"({splits.test} test, {splits.calibration} calibration, {train} train). "
                "Set smaller splits, or settings of the generator that allow more variety"
            )
    entries = list(by_near_id.values())
    train_from = splits.test + splits.calibration
    return {
        "train": entries[train_from:],
        "calibration": entries[splits.test : train_from],
        "test": entries[: splits.test],
    }, repeats
