"""Verifiers of texts: ``exact`` and ``regex``."""

from __future__ import annotations

import regex
from pydantic import Field, field_validator

from skillweave.config import Config


class ExactOptions(Config):
    """``exact``: the whole answer is the gold text."""

    strip: bool = True
    casefold: bool = False


class RegexOptions(Config):
    """``regex``: the pattern is found in the answer."""

    pattern: str
    """``{answer}`` in it stands for the gold text, taken literally: ``(?i)\\b{answer}\\b``."""
    seconds: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Processor time of this process; a search that takes longer (a pattern that backtracks without end) scores 0."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern.replace("{answer}", "x"))
        except regex.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return pattern


def exact(answer: str, gold: str, options: ExactOptions) -> float:
    """1 where the texts are equal, after ``strip`` and ``casefold`` where asked for."""
    for change in (str.strip if options.strip else None, str.casefold if options.casefold else None):
        if change is not None:
            answer, gold = change(answer), change(gold)
    return float(answer == gold)


def regex_found(answer: str, gold: str, options: RegexOptions) -> float:
    """1 where the pattern, ``{answer}`` replaced by the escaped gold text, is found within the time limit."""
    pattern = options.pattern.replace("{answer}", regex.escape(gold.strip()))
    try:
        return float(regex.search(pattern, answer, timeout=options.seconds) is not None)
    except (TimeoutError, regex.error):
        return 0.0
