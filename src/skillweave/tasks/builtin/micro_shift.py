"""Shift a random string of letters along the alphabet, asked in as few characters as a micro model needs."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from pydantic import Field

from skillweave.tasks.builtin.caesar import shifted
from skillweave.tasks.builtin.kind import Builtin, Span


class Settings(Span):
    """Strings of ``least`` to ``most`` letters, shifted by 1 to ``furthest`` letters."""

    least: int = Field(4, ge=1, le=32)
    most: int = Field(8, ge=1, le=32)
    furthest: int = Field(9, ge=1, le=25)


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``3: hnqz`` -> ``kqtc``."""
    text = "".join(rng.choices(ascii_lowercase, k=rng.randint(settings.least, settings.most)))
    by = rng.randint(1, settings.furthest)
    return f"{by}: {text}", shifted(text, by)


BUILTIN = Builtin(Settings, make, "exact")
