"""Reverse the order of the words of a short line, or the letters of a word."""

from __future__ import annotations

from random import Random
from typing import Literal

from pydantic import Field, model_validator

from skillweave.tasks.builtin.kind import Builtin, Span
from skillweave.tasks.builtin.words import WORDS


class Settings(Span):
    """``unit: words`` reverses a line of ``least`` to ``most`` words, ``unit: letters`` spells that many backwards."""

    unit: Literal["words", "letters"] = "words"
    least: int = Field(3, ge=1, le=8)
    most: int = Field(6, ge=1, le=8)

    @model_validator(mode="after")
    def _some_words(self) -> Settings:
        if self.unit == "words" and self.most < 2:
            raise ValueError("a line of one word is its own reverse: set most to at least 2")
        return self


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``Reverse the order of the words: red fox runs`` -> ``runs fox red``."""
    words = rng.sample(WORDS, rng.randint(settings.least, settings.most))
    line = " ".join(words)
    if settings.unit == "letters":
        return f"Spell backwards: {line}", line[::-1]
    return f"Reverse the order of the words: {line}", " ".join(reversed(words))


BUILTIN = Builtin(Settings, make, "exact", {"casefold": True})
