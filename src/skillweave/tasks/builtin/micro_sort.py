"""Put the letters of a random string in order, asked in as few characters as a micro model needs."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span


class Settings(Span):
    """Strings of ``least`` to ``most`` letters, out of the first ``letters`` of the alphabet; repeats are kept."""

    least: int = Field(4, ge=1, le=32)
    most: int = Field(8, ge=1, le=32)
    letters: int = Field(26, ge=2, le=26)


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``sort: hnqan`` -> ``ahnnq``."""
    text = rng.choices(ascii_lowercase[: settings.letters], k=rng.randint(settings.least, settings.most))
    return f"sort: {''.join(text)}", "".join(sorted(text))


BUILTIN = Builtin(Settings, make, "exact")
