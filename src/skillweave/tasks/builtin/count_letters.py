"""Count how often a letter occurs in a line of words."""

from __future__ import annotations

from random import Random

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span
from skillweave.tasks.builtin.words import WORDS


class CountLettersSettings(Span):
    """Settings of ``count_letters``."""

    least: int = Field(1, ge=1, le=8, description="fewest words in a line")
    most: int = Field(3, ge=1, le=8, description="most words in a line")


def make(rng: Random, settings: CountLettersSettings) -> tuple[str, str]:
    """``How many times does the letter "p" occur in "apple"?`` -> ``2``; about one letter in five does not occur."""
    line = " ".join(rng.sample(WORDS, rng.randint(settings.least, settings.most)))
    letters = sorted(set(line) - {" "})
    absent = sorted(set("abcdefghijklmnopqrstuvwxyz") - set(line))
    letter = rng.choice(absent if absent and rng.random() < 0.2 else letters)
    return f'How many times does the letter "{letter}" occur in "{line}"?', str(line.count(letter))


BUILTIN = Builtin(CountLettersSettings, make, "numeric")
