"""Add two whole numbers; the prompt is as short as a micro model needs it."""

from __future__ import annotations

from random import Random

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span


class MicroAddSettings(Span):
    """Settings of ``micro_add``; numbers have no leading zeros."""

    least: int = Field(1, ge=1, le=12, description="fewest digits of a number")
    most: int = Field(3, ge=1, le=12, description="most digits of a number")


def number(rng: Random, digits: int) -> int:
    """A random number with exactly that many digits; 0 counts as a number of one digit."""
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def make(rng: Random, settings: MicroAddSettings) -> tuple[str, str]:
    """``add: 347+58`` -> ``405``."""
    a, b = (number(rng, rng.randint(settings.least, settings.most)) for _ in range(2))
    return f"add: {a}+{b}", str(a + b)


BUILTIN = Builtin(MicroAddSettings, make, "exact")
