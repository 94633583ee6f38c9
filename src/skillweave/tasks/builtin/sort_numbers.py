"""Sort numbers."""

from __future__ import annotations

from random import Random
from typing import Literal

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span


class SortNumbersSettings(Span):
    """Settings of ``sort_numbers``; the numbers are whole and all different."""

    least: int = Field(3, ge=2, le=10, description="fewest numbers in a prompt")
    most: int = Field(6, ge=2, le=10, description="most numbers in a prompt")
    greatest: int = Field(99, ge=10, le=9999, description="greatest number; the smallest is 0")
    order: Literal["ascending", "descending", "either"] = Field(
        "either", description="the order that a prompt asks for; either: drawn for each prompt"
    )


def make(rng: Random, settings: SortNumbersSettings) -> tuple[str, str]:
    """``Sort from smallest to largest: 31, 4, 15`` -> ``4, 15, 31``."""
    order = rng.choice(("ascending", "descending")) if settings.order == "either" else settings.order
    numbers = rng.sample(range(settings.greatest + 1), rng.randint(settings.least, settings.most))
    direction = "smallest to largest" if order == "ascending" else "largest to smallest"
    answer = sorted(numbers, reverse=order == "descending")
    return f"Sort from {direction}: {_line(numbers)}", _line(answer)


def _line(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


BUILTIN = Builtin(SortNumbersSettings, make, "exact")
