"""A task: prompts with a verifier, cut into train, calibration and test so that no prompt stands in two of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from skillweave.artefact import digest
from skillweave.base.chat import Prompt, as_messages
from skillweave.errors import UserError, nearest
from skillweave.tasks.spec import AnySpec, Splits

SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True)
class Entry:
    """One example. ``id`` is :func:`prompt_id`; ``answer`` is the gold text, None where only a verifier knows."""

    id: str
    prompt: Prompt
    answer: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


Scorer = Callable[[str, Entry], float]
"""A model's answer and the entry it answers -> a score in [0, 1]; never raises on what the model wrote."""


@dataclass(frozen=True)
class Task:
    """Named splits of entries, and how an answer to one is scored.

    ``duplicates`` counts the examples that were dropped because their prompt had been seen before.
    Raises :class:`UserError` where two splits share a prompt or all are empty.
    """

    name: str
    splits: Mapping[str, list[Entry]] = field(repr=False)
    scorer: Scorer
    spec: AnySpec
    duplicates: int = 0

    def __post_init__(self) -> None:
        if not any(self.splits.values()):
            raise UserError(f"task '{self.name}' is empty: it needs at least one example")
        check_disjoint({name: self.split(name) for name, size in self.sizes.items() if size}, self.name)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of entries of each split."""
        return {name: len(self.splits.get(name, [])) for name in SPLITS}

    def split(self, name: str) -> list[Entry]:
        """The entries of ``train``, ``calibration`` or ``test``; an empty or unknown one is a :class:`UserError`."""
        if name not in SPLITS:
            raise UserError(f"task '{self.name}' has no split '{name}'; {nearest(name, SPLITS)}")
        entries = self.splits.get(name, [])
        if not entries:
            raise UserError(f"task '{self.name}' holds no {name} examples: set splits.{name} to at least 1")
        return entries

    @property
    def key(self) -> str:
        """A digest of what the task asks and how it judges: equal for equal content, wherever the rows stand."""
        content = {
            name: [[entry.id, entry.prompt, entry.answer, entry.metadata.get("cases")] for entry in entries]
            for name, entries in self.splits.items()
        }
        return digest([self.spec.model_dump(mode="json"), content])

    def pairs(self, name: str) -> list[tuple[Prompt, str]]:
        """Prompts with their gold answers, for training and calibration."""
        pairs = [(entry.prompt, entry.answer) for entry in self.split(name) if entry.answer is not None]
        missing = len(self.split(name)) - len(pairs)
        if missing:
            raise UserError(
                f"task '{self.name}': {missing} {name} examples have no gold answer to learn from; "
                "add an 'answer' to each row, or use a method that learns from the verifier alone"
            )
        return pairs

    def score(self, answer: str | None, entry: Entry) -> float:
        """The verifier's score of a model's answer, in [0, 1]; 1 is right, and None, which is no answer, is 0.

        Never raises on what the model wrote.
        """
        return 0.0 if answer is None else self.scorer(answer, entry)


def normal_text(text: str) -> str:
    """The text by which prompts are compared: composed Unicode, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def prompt_id(prompt: Prompt) -> str:
    """16 hex digits that name a prompt's content; prompts that differ only in case or white space share one."""
    return digest([[message["role"], normal_text(message["content"])] for message in as_messages(prompt)])


def check_disjoint(splits: Mapping[str, Sequence[Entry]], task: str) -> None:
    """Raise :class:`UserError` naming a prompt that stands in two splits (and its place, where it has one)."""
    for (first, entries), (second, others) in combinations(splits.items(), 2):
        known = {entry.id: entry for entry in entries}
        shared = [entry for entry in others if entry.id in known]
        if shared:
            entry, other = known[shared[0].id], shared[0]
            places = f"{entry.metadata.get('where', first)} and {other.metadata.get('where', second)}"
            raise UserError(
                f"task '{task}': {len(shared)} of the {second} prompts stand in {first} too, so a score would be "
                f"partly memory. The first: {as_messages(other.prompt)[-1]['content'][:60]!r} ({places}). "
                "Remove them from one of the two."
            )


def drop_duplicates(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """The first entry of every prompt, in order, and how many were dropped."""
    first: dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry.id, entry)
    return list(first.values()), len(entries) - len(first)


def cut(entries: Sequence[Entry], splits: Splits, task: str) -> dict[str, list[Entry]]:
    """Cut distinct entries by the order of their ids, a hash of their content: test first, then calibration, train.

    The same rows give the same splits in whatever order they stand. Adding rows to a file may push some from one
    split to the next; whoever wants them pinned writes one file a split.
    """
    need = splits.test + splits.calibration + (1 if splits.train is None else splits.train)
    if len(entries) < need:
        raise UserError(
            f"task '{task}' has {len(entries)} distinct prompts; splits ask for {splits.test} test + "
            f"{splits.calibration} calibration + {splits.train or 'at least 1'} train. "
            "Add examples or set smaller splits, for example splits: {test: 20, calibration: 8}"
        )
    ordered = sorted(entries, key=lambda entry: entry.id)
    train_from = splits.test + splits.calibration
    train_to = None if splits.train is None else train_from + splits.train
    return {
        "train": ordered[train_from:train_to],
        "calibration": ordered[splits.test : train_from],
        "test": ordered[: splits.test],
    }
