"""Regular expressions from users and files: they are checked, and searches have limits of time and memory.

Python's own ``re`` has no limit: ``(a+)+$`` on forty letters runs for years and holds the interpreter's lock all the
time. The ``regex`` library accepts the same syntax and more, and stops a search that takes too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import regex

LONGEST = 20_000
"""Most characters of a pattern: the time for compiling it grows with the square of its length."""
MOST_UNROLLED = 100_000
"""Most characters and classes of a pattern with its repeats written out, as compiling does: takes 0.1 seconds."""
SECONDS = 0.5
"""Most seconds of this process's processor time for one search."""

# (?R), (?1), (?+1), (?&name), (?P>name): a pattern that contains itself. Its search can take a gigabyte a second.
_RECURSIVE = re.compile(r"\(\?(?:R|[+-]?[0-9]|&|P>)")


# A class, an escaped character, a counted repeat, or one other character. A "]" right after "[" or "[^" is part of the
# class.
_PIECES = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|\{(?P<least>[0-9]+)(?:,[0-9]*)?\}|.", re.DOTALL)


class TooSlow(Exception):
    """A search took longer than its limit, or more memory than there is."""


@lru_cache(maxsize=256)
def compiled(pattern: str) -> regex.Pattern[str]:
    """The compiled pattern. Raises ``ValueError``, which says what is wrong, if it is not a valid pattern."""
    if len(pattern) > LONGEST:
        raise ValueError(f"the regular expression has {len(pattern):,} characters, more than {LONGEST:,}")
    if _RECURSIVE.search(pattern):
        raise ValueError(
            "a regular expression that contains itself, such as (?R), has no memory limit: write it without that"
        )
    if (size := _unrolled(pattern)) > MOST_UNROLLED:
        raise ValueError(
            f"the regular expression repeats too often: with its repeats written out it has "
            f"{'more than 10^18' if size > 10**18 else f'{size:,}'} characters, more than {MOST_UNROLLED:,}"
        )
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    except (RecursionError, OverflowError, MemoryError) as error:
        raise ValueError("the regular expression is nested too deeply or repeats too often") from error


def finds_everything(pattern: str) -> bool:
    """Return whether a pattern is found in every text: in the empty one, and in one that no pattern means."""
    return all(bounded_search(pattern, text) for text in ("", "\ue000"))


def _unrolled(pattern: str) -> int:
    """The number of characters and classes of a pattern with its repeats written out, each as often as its minimum.

    ``(ab{3}){2}`` has 8. The result is an upper bound: comments in the pattern count too.
    """
    open_groups, total, last = [], 0, 0
    for piece in _PIECES.finditer(pattern):
        text, least = piece[0], piece["least"]
        if least is not None:
            times = int(least) if len(least) < 10 else 10**10
            total += last * (times - 1) if times else 0
            last *= max(times, 1)
        elif text == "(":
            open_groups.append(total)
            total = 0
        elif text == ")" and open_groups:
            last, total = total, total + open_groups.pop()
        elif text not in ("?", "+", "*", "|", "^", "$"):
            total, last = total + 1, 1
    return total + sum(open_groups)


def bounded_search(pattern: str, text: str, seconds: float = SECONDS) -> regex.Match[str] | None:
    """The first match of the pattern in the text, or None.

    Raises ``ValueError`` for a pattern that :func:`compiled` refuses, and :class:`TooSlow`.
    """
    try:
        return compiled(pattern).search(text, timeout=seconds)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(pattern, text, seconds) from error


def bounded_fullmatch(pattern: str, text: str, seconds: float = SECONDS) -> regex.Match[str] | None:
    """The match of the pattern with the whole text, or None. Raises the errors of :func:`bounded_search`."""
    try:
        return compiled(pattern).fullmatch(text, timeout=seconds)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(pattern, text, seconds) from error


def bounded_finditer(pattern: str, text: str, seconds: float = SECONDS) -> Iterator[regex.Match[str]]:
    """All matches from left to right, in ``seconds`` for all together. Raises the errors of :func:`bounded_search`."""
    try:
        yield from compiled(pattern).finditer(text, timeout=seconds)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(pattern, text, seconds) from error


def _too_slow(pattern: str, text: str, seconds: float) -> TooSlow:
    return TooSlow(
        f"the regular expression {pattern[:60]!r} takes longer than {seconds:g} s on a text of {len(text):,} "
        "characters: write one that does not try the same letters in many ways, such as (a+)+"
    )
