"""The verifiers of texts: ``exact`` and ``regex``. Texts are compared in NFC, where é is one character."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import regex
from pydantic import Field, field_validator

from skillweave.config import Config
from skillweave.patterns import TooSlow, bounded_search, compiled
from skillweave.tasks.verifiers.place import PlaceOptions, boxed, first_line, marked_part
from skillweave.tasks.verifiers.warn import warn_once


class ExactOptions(PlaceOptions):
    """``exact``: the answer is the gold text."""

    answer_at: Literal["whole", "last", "first", "boxed"] = Field(
        default="whole",
        description="what is compared: the `whole` text, its `first` or `last` line that is not empty, or what is "
        "in the last `\\boxed{}`",
    )
    strip: bool = Field(default=True, description="Ignore white space around the texts.")
    casefold: bool = Field(default=False, description="Ignore upper and lower case.")


class RegexOptions(Config):
    """``regex``: the pattern matches anywhere in the answer, unless it contains ``^`` and ``$``."""

    pattern: str = Field(
        description="the regular expression; `{answer}` stands for the gold text, taken literally: `(?i)\\b{answer}\\b`"
    )
    seconds: float = Field(
        default=0.5,
        gt=0,
        allow_inf_nan=False,
        description="limit of processor time; a search that takes longer (because the pattern backtracks without "
        "end) scores 0",
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        compiled(pattern.replace("{answer}", "x"))
        return pattern


_SET_OFF = re.compile(
    r"\*\*(?P<bold>[^*\n]+)\*\*|\*(?P<italic>[^*\n]+)\*|__(?P<strong>[^_\n]+)__|`(?P<code>[^`\n]+)`"
    r"|\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit)\s?\{(?P<latex>[^{}]*)\}"
)
"""A text that is set off as a whole, by Markdown or in LaTeX."""


def nfc(text: str) -> str:
    """Return the text in composed Unicode; a lone surrogate (half a character) is not changed."""
    return unicodedata.normalize("NFC", text)


def exact(answer: str, gold: str, options: ExactOptions) -> float:
    """Return 1 if the texts are equal, after ``strip`` and ``casefold`` if these are set; else 0."""
    part = _answer_part(answer, options)
    if part is None:
        return 0.0
    part, gold = (nfc(text).replace("\r\n", "\n") for text in (part, gold))
    for change in (str.strip if options.strip else None, str.casefold if options.casefold else None):
        if change is not None:
            part, gold = change(part), change(gold)
    parts = [part]
    while options.answer_at != "whole" or options.marked:  # a part of an answer may be set in bold type, or as code
        inner = _SET_OFF.fullmatch(parts[-1])
        if inner is None:
            break
        content = inner[str(inner.lastgroup)]
        parts.append(content.strip() if options.strip else content)
    return float(nfc(gold) in map(nfc, parts))


def _answer_part(answer: str, options: ExactOptions) -> str | None:
    if options.marked:
        return marked_part(answer, options)
    if options.answer_at == "boxed":
        return boxed(answer)
    if options.answer_at == "first":
        return first_line(answer)
    if options.answer_at == "last":
        return answer.strip().rpartition("\n")[2]
    return answer


def regex_found(answer: str, gold: str, options: RegexOptions) -> float:
    """Return 1 if the pattern, with the gold text in place of ``{answer}``, matches within the time limit; else 0."""
    try:
        return float(
            bounded_search(_with_answer(options, gold), nfc(answer).replace("\r\n", "\n"), options.seconds) is not None
        )
    except TooSlow as problem:
        warn_once("regex", f"an answer was not judged and scores 0: {problem}")
    except ValueError:  # not a pattern with this gold text: regex_gold_problem reports it when the task is read
        pass
    return 0.0


def _with_answer(options: RegexOptions, gold: str) -> str:
    pattern, gold = (nfc(text).replace("\r\n", "\n") for text in (options.pattern, gold))
    return pattern.replace("{answer}", regex.escape(gold.strip()))


def regex_gold_problem(gold: str, options: RegexOptions) -> str | None:
    """Return why the pattern is invalid with this gold text, or None."""
    try:
        compiled(_with_answer(options, gold))
    except ValueError as error:
        return f"verifier 'regex', with this answer in place of {{answer}}: {error}"
    return None
