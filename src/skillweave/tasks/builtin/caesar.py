"""Shift every letter of a line along the alphabet."""

from __future__ import annotations

from random import Random

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span
from skillweave.tasks.builtin.words import WORDS

_A, _LETTERS = ord("a"), 26


class CaesarSettings(Span):
    """Settings of ``caesar``."""

    least: int = Field(1, ge=1, le=4, description="fewest words in a line")
    most: int = Field(3, ge=1, le=4, description="most words in a line")
    furthest: int = Field(3, ge=1, le=25, description="largest shift in letters; the smallest is 1")


def shifted(line: str, by: int) -> str:
    """The line with each letter a to z moved ``by`` places (a follows z); everything else stays."""
    return "".join(chr((ord(c) - _A + by) % _LETTERS + _A) if c.isalpha() else c for c in line)


def make(rng: Random, settings: CaesarSettings) -> tuple[str, str]:
    """``Shift each letter forward by 1: cab`` -> ``dbc``."""
    line = " ".join(rng.sample(WORDS, rng.randint(settings.least, settings.most)))
    by = rng.randint(1, settings.furthest)
    return f"Shift each letter forward by {by}: {line}", shifted(line, by)


BUILTIN = Builtin(CaesarSettings, make, "exact", {"casefold": True})
