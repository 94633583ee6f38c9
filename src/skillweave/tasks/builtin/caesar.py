"""Shift every letter of a line along the alphabet."""

from __future__ import annotations

from random import Random

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span
from skillweave.tasks.builtin.words import WORDS

_A, _LETTERS = ord("a"), 26


class Settings(Span):
    """Lines of ``least`` to ``most`` words, shifted by 1 to ``furthest`` letters."""

    least: int = Field(1, ge=1, le=4)
    most: int = Field(3, ge=1, le=4)
    furthest: int = Field(3, ge=1, le=25)


def shifted(line: str, by: int) -> str:
    """Each letter a to z moved ``by`` places, z followed by a; everything else stays."""
    return "".join(chr((ord(c) - _A + by) % _LETTERS + _A) if c.isalpha() else c for c in line)


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``Shift each letter forward by 1: cab`` -> ``dbc``."""
    line = " ".join(rng.sample(WORDS, rng.randint(settings.least, settings.most)))
    by = rng.randint(1, settings.furthest)
    return f"Shift each letter forward by {by}: {line}", shifted(line, by)


BUILTIN = Builtin(Settings, make, "exact", {"casefold": True})
