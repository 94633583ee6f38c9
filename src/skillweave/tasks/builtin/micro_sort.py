"""Sort the letters of a random string; the prompt is as short as a micro model needs it."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from pydantic import Field

from skillweave.tasks.builtin.kind import Builtin, Span


class MicroSortSettings(Span):
    """Settings of ``micro_sort``; a letter that occurs twice stays twice in the answer."""

    least: int = Field(4, ge=1, le=32, description="fewest letters of a string")
    most: int = Field(8, ge=1, le=32, description="most letters of a string")
    letters: int = Field(26, ge=2, le=26, description="how many letters of the alphabet are used, from a on")


def make(rng: Random, settings: MicroSortSettings) -> tuple[str, str]:
    """``sort: hnqan`` -> ``ahnnq``."""
    text = rng.choices(ascii_lowercase[: settings.letters], k=rng.randint(settings.least, settings.most))
    return f"sort: {''.join(text)}", "".join(sorted(text))


BUILTIN = Builtin(MicroSortSettings, make, "exact")
