"""Spell a random string of letters backwards, asked in as few characters as a micro model needs."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span


class Settings(Span):
    """Strings of ``least`` to ``most`` letters, out of the first ``letters`` of the alphabet."""

    least: int = Field(4, ge=1, le=32)
    most: int = Field(8, ge=1, le=32)
    letters: int = Field(26, ge=2, le=26)


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``rev: hnqz`` -> ``zqnh``."""
    text = "".join(rng.choices(ascii_lowercase[: settings.letters], k=rng.randint(settings.least, settings.most)))
    return f"rev: {text}", text[::-1]


BUILTIN = Builtin(Settings, make, "exact")
