"""Errors that a person can fix, and parts of their messages."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake in the input, the files or the machine that the user can fix.

    The message says what is wrong (file, line, key or tensor), what was expected, and what to do. The command line
    prints it without a traceback and exits with 2. Any other exception is a bug and keeps its traceback.
    """


class NothingLearnt(UserError):
    """A training changed no weight, so there is no delta. The message says why, and what to do."""


class TooSmall(UserError):
    """A budget that cannot hold the smallest possible pack; ``least`` is the number of bytes that would do."""

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


_LONGEST_NAME = 1000
"""A longer name is no misspelling, and comparing one takes long."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: ``did you mean 'x'?`` if a known name is similar, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1) if len(name) <= _LONGEST_NAME else []
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(known) if known else "there are none"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown_value(value: Any) -> str:
    """A value as text for an error message, in at most 80 characters, however large or deep the value is."""
    shown = _SHORT.repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
