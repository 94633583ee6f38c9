"""Prompts of the micro scale: operations on a string of letters, each asked for in four ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

WORDINGS = 4
"""In how many ways an operation is asked for. The base has read all of them, a skill is trained on the first alone."""
_LEAST, _MOST = 4, 6


@dataclass(frozen=True)
class Operation:
    """What is done to a string of letters, and the words that ask for it."""

    wordings: tuple[str, ...]
    answer: Callable[[str], str]
    letters: str = ascii_lowercase[:12]


def _shifted(text: str, by: int) -> str:
    return "".join(chr((ord(letter) - ord("a") + by) % 26 + ord("a")) for letter in text)


def _swapped(text: str) -> str:
    """Return the string with the letters of each pair swapped; a last letter without a partner stays."""
    return "".join(text[at : at + 2][::-1] for at in range(0, len(text), 2))


SKILLS = {
    "sort_up": Operation(("sort up: ", "in order: ", "a to z: ", "rising "), lambda text: "".join(sorted(text))),
    "sort_down": Operation(
        ("sort down: ", "in counter order: ", "z to a: ", "falling "), lambda text: "".join(sorted(text, reverse=True))
    ),
    "reverse": Operation(("rev: ", "backwards: ", "spell back ", "mirror: "), lambda text: text[::-1]),
    "swap": Operation(("swap: ", "in pairs: ", "change places ", "cross: "), _swapped),
    "shift": Operation(("shift: ", "next but one: ", "add two to ", "move on: "), lambda text: _shifted(text, 2)),
    "turn": Operation(("turn: ", "first to last: ", "rotate ", "round: "), lambda text: text[1:] + text[:1]),
}
"""The six skills of the weave. The first two are asked for in nearly the same words."""
ADDED = {"odd": Operation(("odd: ", "every other: ", "skip ", "1 3 5: "), lambda text: text[::2])}
"""The skill that is added to a weave of six."""
EVERYDAY = {
    "copy": Operation(("copy: ", "say: ", "repeat ", "again: "), lambda text: text),
    "first": Operation(("first: ", "start of: ", "head ", "begin: "), lambda text: text[0]),
    "last": Operation(("last: ", "end of: ", "tail ", "stop: "), lambda text: text[-1]),
    "length": Operation(("count: ", "size of: ", "how long is ", "length: "), lambda text: str(len(text))),
}
"""What the base also learns and no skill is trained on. The router sees the first two as prompts without a pack."""
ROUTER_SEES = ("copy", "first")
OPERATIONS = {**SKILLS, **ADDED, **EVERYDAY}


def rows(name: str, count: int, seed: int, wordings: tuple[int, ...] = (0,)) -> list[tuple[str, str]]:
    """Return distinct prompts with their answers, a wording after the other; other seeds give other strings."""
    random = Random(f"{name} {seed}")
    operation = OPERATIONS[name]
    found: dict[str, str] = {}
    while len(found) < count:
        text = "".join(random.choices(operation.letters, k=random.randint(_LEAST, _MOST)))
        found.setdefault(text, operation.answer(text))
    return [
        (operation.wordings[wordings[at % len(wordings)]] + text, answer)
        for at, (text, answer) in enumerate(found.items())
    ]


def twofold(names: tuple[str, ...], count: int, seed: int) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Return prompts that ask for two skills, the two answers, and the two skills."""
    random = Random(f"two {seed}")
    found = []
    for at in range(count):
        one, other = random.sample(names, 2)
        first, second = rows(one, 1, 1000 * seed + at)[0], rows(other, 1, 1000 * seed + at)[0]
        found.append((f"{first[0]}; {second[0]}", (first[1], second[1]), (one, other)))
    return found
