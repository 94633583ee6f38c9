"""Verifiers of texts: ``exact`` and ``regex``. Texts are compared in NFC, in which é is one character."""

from __future__ import annotations

import unicodedata
from typing import Literal

import regex
from pydantic import Field, field_validator

from skillweave.config import Config
from skillweave.patterns import TooSlow, bounded_search, compiled
from skillweave.tasks.verifiers.place import Placed, boxed, first_line, marked_part
from skillweave.tasks.verifiers.told import told_once


class ExactOptions(Placed):
    r"""``exact``: the answer is the gold text.

    ``answer_at: whole``, the default, compares the whole text; ``first`` and ``last`` a line of it that is not empty,
    ``boxed`` what the last ``\boxed{}`` holds.
    """

    answer_at: Literal["whole", "last", "first", "boxed"] = "whole"
    strip: bool = True
    casefold: bool = False


class RegexOptions(Config):
    """``regex``: the pattern is found anywhere in the answer, unless it says ``^`` and ``$`` itself."""

    pattern: str
    """``{answer}`` in it stands for the gold text, taken literally: ``(?i)\\b{answer}\\b``."""
    seconds: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Processor time of this process; a search that takes longer (a pattern that backtracks without end) scores 0."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        compiled(pattern.replace("{answer}", "x"))
        return pattern


def nfc(text: str) -> str:
    """The text in composed Unicode; half a character (a lone surrogate) stays as it is."""
    return unicodedata.normalize("NFC", text)


def exact(answer: str, gold: str, options: ExactOptions) -> float:
    """1 where the texts are equal, after ``strip`` and ``casefold`` where asked for."""
    found = _placed(answer, options)
    if found is None:
        return 0.0
    found, gold = nfc(found), nfc(gold)
    for change in (str.strip if options.strip else None, str.casefold if options.casefold else None):
        if change is not None:
            found, gold = change(found), change(gold)
    return float(nfc(found) == nfc(gold))


def _placed(answer: str, options: ExactOptions) -> str | None:
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
    """1 where the pattern, ``{answer}`` replaced by the escaped gold text, is found within the time limit."""
    try:
        return float(bounded_search(_with_answer(options, gold), nfc(answer), options.seconds) is not None)
    except TooSlow as problem:
        told_once("regex", f"an answer was not judged and scores 0: {problem}")
    except ValueError:  # with this gold text it is no pattern, which regex_gold_problem tells when the task is read
        pass
    return 0.0


def _with_answer(options: RegexOptions, gold: str) -> str:
    return nfc(options.pattern).replace("{answer}", regex.escape(nfc(gold).strip()))


def regex_gold_problem(gold: str, options: RegexOptions) -> str | None:
    """Why the pattern with this gold text in it is none, or None."""
    try:
        compiled(_with_answer(options, gold))
    except ValueError as error:
        return f"verifier 'regex', with this answer in place of {{answer}}: {error}"
    return None
