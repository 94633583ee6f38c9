"""Spell a random string of letters backwards; the prompt is as short as a micro model needs it."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span


class MicroReverseSettings(Span):
    """Settings of ``micro_reverse``."""

    least: int = Field(4, ge=1, le=32, description="fewest letters of a string")
    most: int = Field(8, ge=1, le=32, description="most letters of a string")
    letters: int = Field(26, ge=2, le=26, description="how many letters of the alphabet are used, from a on")


def make(rng: Random, settings: MicroReverseSettings) -> tuple[str, str]:
    """``rev: hnqz`` -> ``zqnh``."""
    text = "".join(rng.choices(ascii_lowercase[: settings.letters], k=rng.randint(settings.least, settings.most)))
    return f"rev: {text}", text[::-1]


BUILTIN = Builtin(MicroReverseSettings, make, "exact")
