"""Shift a random string of letters along the alphabet; the prompt is as short as a micro model needs it."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from pydantic import Field

from skillweave.tasks.builtin.caesar import shifted
from skillweave.tasks.builtin.kind import Builtin, Span


class MicroShiftSettings(Span):
    """Settings of ``micro_shift``."""

    least: int = Field(4, ge=1, le=32, description="fewest letters of a string")
    most: int = Field(8, ge=1, le=32, description="most letters of a string")
    furthest: int = Field(9, ge=1, le=25, description="largest shift in letters; the smallest is 1")


def make(rng: Random, settings: MicroShiftSettings) -> tuple[str, str]:
    """``3: hnqz`` -> ``kqtc``."""
    text = "".join(rng.choices(ascii_lowercase, k=rng.randint(settings.least, settings.most)))
    by = rng.randint(1, settings.furthest)
    return f"{by}: {text}", shifted(text, by)


BUILTIN = Builtin(MicroShiftSettings, make, "exact")
