"""Add two whole numbers, asked in as few characters as a micro model needs."""

from __future__ import annotations

from random import Random

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span


class Settings(Span):
    """Numbers of ``least`` to ``most`` digits each, without leading zeros."""

    least: int = Field(1, ge=1, le=12)
    most: int = Field(3, ge=1, le=12)


def number(rng: Random, digits: int) -> int:
    """One with exactly that many digits; 0 is among those of one digit."""
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``add: 347+58`` -> ``405``."""
    a, b = (number(rng, rng.randint(settings.least, settings.most)) for _ in range(2))
    return f"add: {a}+{b}", str(a + b)


BUILTIN = Builtin(Settings, make, "exact")
