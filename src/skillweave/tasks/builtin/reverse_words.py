"""Reverse the order of the words of a short line, or the letters of a word."""

from __future__ import annotations

from random import Random
from typing import Literal

from pydantic import Field, model_validator

from skillweave.tasks.builtin.kind import Builtin, Span
from skillweave.tasks.builtin.words import WORDS


class ReverseWordsSettings(Span):
    """Settings of ``reverse_words``."""

    unit: Literal["words", "letters"] = Field(
        "words", description="words: reverse the order of the words; letters: spell the line backwards"
    )
    least: int = Field(3, ge=1, le=8, description="fewest words in a line")
    most: int = Field(6, ge=1, le=8, description="most words in a line")

    @model_validator(mode="after")
    def _some_words(self) -> ReverseWordsSettings:
        if self.unit == "words" and self.most < 2:
            raise ValueError("a line of one word is its own reverse: set most to at least 2")
        return self


def make(rng: Random, settings: ReverseWordsSettings) -> tuple[str, str]:
    """``Reverse the order of the words: red fox runs`` -> ``runs fox red``."""
    words = rng.sample(WORDS, rng.randint(settings.least, settings.most))
    line = " ".join(words)
    if settings.unit == "letters":
        return f"Spell backwards: {line}", line[::-1]
    return f"Reverse the order of the words: {line}", " ".join(reversed(words))


BUILTIN = Builtin(ReverseWordsSettings, make, "exact", {"casefold": True})
