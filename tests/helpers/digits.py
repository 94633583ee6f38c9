"""A task made in code for the tests of methods: ``say 7`` wants ``777``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from skillweave.errors import UserError
from skillweave.files.hashes import digest


@dataclass
class DigitEntry:
    id: str
    prompt: Any
    answer: str | None
    metadata: dict = field(default_factory=dict)

    @property
    def prompt_id(self) -> str:
        return self.prompt


class Digits:
    """The score of an answer is the fraction of its three characters that are right."""

    name = "digits"

    def __init__(self, entries: int = 10, gold: bool = True):
        self.entries = [
            DigitEntry(f"d{index}", f"say {index % 10}", str(index % 10) * 3 if gold else None)
            for index in range(entries)
        ]
        self.splits = {"train": self.entries, "calibration": self.entries[:4]}

    @property
    def key(self) -> str:
        return digest([[entry.id, entry.prompt, entry.answer] for entry in self.entries])

    def split(self, name: str) -> list[DigitEntry]:
        return self.entries

    def score(self, answer: str, entry: DigitEntry) -> float:
        wanted = entry.prompt[-1] * 3
        return sum(a == b for a, b in zip(answer, wanted, strict=False)) / 3 if len(answer) == 3 else 0.0

    def pairs(self, name: str) -> list[tuple[Any, str]]:
        if any(entry.answer is None for entry in self.entries):
            raise UserError("10 train examples have no gold answer")
        return [(entry.prompt, entry.answer) for entry in self.entries if entry.answer is not None]


class Repeats(Digits):
    """``say 7 3 times please`` wants ``777``. No prompt occurs twice, and prompts and answers have many lengths.

    ``asked`` has the names of the splits that were read. There is no test split.
    """

    name = "repeats"

    def __init__(self, train: int = 32, calibration: int = 12, gold: bool = True):
        super().__init__(0)
        self.asked: list[str] = []
        for index in range(train + calibration):
            digit, times = index % 10, 1 + index % 4
            prompt = f"say {digit} {times} times" + " please" * (index // 20)
            self.entries.append(DigitEntry(f"r{index}", prompt, str(digit) * times if gold else None))
        self.splits = {"train": self.entries[:train], "calibration": self.entries[train:]}

    def split(self, name: str) -> list[DigitEntry]:
        self.asked.append(name)
        return self.splits[name]

    def score(self, answer: str, entry: DigitEntry) -> float:
        _, digit, times, *_ = entry.prompt.split()
        return float(answer == digit * int(times))

    def pairs(self, name: str) -> list[tuple[Any, str]]:
        entries = self.split(name)
        if any(entry.answer is None for entry in entries):
            raise UserError(f"a {name} example has no gold answer")
        return [(entry.prompt, entry.answer) for entry in entries]
