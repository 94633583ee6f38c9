"""Regular expressions that people and files bring: checked, and searched within limits of time and memory.

Python's own ``re`` has no limit: ``(a+)+$`` on forty letters runs for years and holds the interpreter's lock meanwhile.
The ``regex`` library reads the same syntax and more, and ends a search that takes too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import regex

LONGEST = 20_000
"""Characters of a pattern: compiling one takes time that grows with the square of its length."""
MOST_UNROLLED = 100_000
"""Characters and classes of a pattern when its repeats are written out, as compiling does: the tenth of a second."""
SECONDS = 0.5
"""Processor time of this process that one search may take."""

# (?R), (?1), (?+1), (?&name), (?P>name): a pattern within itself, whose search can take a gigabyte a second.
_RECURSIVE = re.compile(r"\(\?(?:R|[+-]?[0-9]|&|P>)")


# A class, an escaped character, a counted repeat, or one other character; "]" right behind "[" or "[^" belongs to the
# class.
_PIECES = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|\{(?P<least>[0-9]+)(?:,[0-9]*)?\}|.", re.DOTALL)


class TooSlow(Exception):
    """A search took longer than it may, or more memory than there is."""


@lru_cache(maxsize=256)
def compiled(pattern: str) -> regex.Pattern[str]:
    """The compiled pattern. Raises ``ValueError``, whose message says what is wrong with it, where it is none."""
    if len(pattern) > LONGEST:
        raise ValueError(f"the regular expression has {len(pattern):,} characters, more than {LONGEST:,}")
    if _RECURSIVE.search(pattern):
        raise ValueError("a regular expression that contains itself, as (?R), has no limit of memory: write it without")
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


def _unrolled(pattern: str) -> int:
    """How many characters and classes a pattern has when its repeats are written out as often as they are needed.

    ``(ab{3}){2}`` has 8. An upper bound: what stands in a comment of the pattern counts too.
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
    """Where the pattern matches in the text first, None where it does not.

    Raises ``ValueError`` for what :func:`compiled` refuses, and :class:`TooSlow`.
    """
    try:
        return compiled(pattern).search(text, timeout=seconds)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(pattern, text, seconds) from error


def bounded_fullmatch(pattern: str, text: str, seconds: float = SECONDS) -> regex.Match[str] | None:
    """The match of the pattern with the whole text, None where it does not match; raises as :func:`bounded_search`."""
    try:
        return compiled(pattern).fullmatch(text, timeout=seconds)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(pattern, text, seconds) from error


def bounded_finditer(pattern: str, text: str, seconds: float = SECONDS) -> Iterator[regex.Match[str]]:
    """All matches from left to right, within ``seconds`` together; raises as :func:`bounded_search`."""
    try:
        yield from compiled(pattern).finditer(text, timeout=seconds)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(pattern, text, seconds) from error


def _too_slow(pattern: str, text: str, seconds: float) -> TooSlow:
    return TooSlow(
        f"the regular expression {pattern[:60]!r} takes longer than {seconds:g} s on a text of {len(text):,} "
        "characters: write one that does not try the same letters in many ways, such as (a+)+"
    )
