"""Count how often a letter stands in a line of words."""

from __future__ import annotations

from random import Random

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span
from skillweave.tasks.builtin.words import WORDS


class Settings(Span):
    """Lines of ``least`` to ``most`` words."""

    least: int = Field(1, ge=1, le=8)
    most: int = Field(3, ge=1, le=8)


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``How many times does the letter "p" occur in "apple"?`` -> ``2``; one letter in five does not occur."""
    line = " ".join(rng.sample(WORDS, rng.randint(settings.least, settings.most)))
    letters = sorted(set(line) - {" "})
    absent = sorted(set("abcdefghijklmnopqrstuvwxyz") - set(line))
    letter = rng.choice(absent if absent and rng.random() < 0.2 else letters)
    return f'How many times does the letter "{letter}" occur in "{line}"?', str(line.count(letter))


BUILTIN = Builtin(Settings, make, "numeric")
