"""Invented names. The pools are far larger than one world needs; each world takes a different stretch of them.

Worlds 0, 1, 2 ... of equal size share no name until a pool is used up (8000 people; 2189 short names).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from random import Random

_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
_VOWELS = "aeiou"
_STARTS = ("", *"bdfghklmnprstvz", "br", "dr", "gr", "kr", "tr")
_MIDDLES = (*"bdfglmnrstvz", "th", "ll", "sk", "nn")
_CLUSTERS = ("nd", "rk", "lm", "st", "rv", "ns", "lt", "mb", "rsh", "sk")
_LAST_ENDS = ("al", "an", "er", "is", "or", "ul", "eth", "ov")
_PLACE_ENDS = ("ford", "ham", "mere", "stead", "burg", "wick", "dale", "ton")
# The search ignores these words, so they cannot be names.
_IGNORED = {"be", "but", "for", "no", "not", "to", "was"}


def _pool(*parts: Sequence[str]) -> list[str]:
    """All words made of one piece from each part, shuffled with a fixed seed."""
    words = sorted({"".join(pieces) for pieces in product(*parts)} - _IGNORED)
    Random(0).shuffle(words)
    return words


_FIRST = _pool(_STARTS, _VOWELS, _MIDDLES, _VOWELS)
_LAST = _pool(_STARTS[1:], _VOWELS, _CLUSTERS, _LAST_ENDS)
_PLACES = _pool(_STARTS[1:], _VOWELS, _CLUSTERS, _PLACE_ENDS)
_SHORT = _pool(_CONSONANTS, _VOWELS, _CONSONANTS)
_SHORT_RELATIONS = _pool(_CONSONANTS, _VOWELS)


def _stretch(pool: Sequence[str], world: int, count: int) -> list[str]:
    """The ``count`` names of one world."""
    return [pool[(world * count + index) % len(pool)] for index in range(count)]


def people_names(world: int, count: int) -> list[str]:
    """Names such as ``Oresa Vindal``; no first name and no last name occurs twice in a world."""
    lasts = _stretch(_LAST, world, count)
    return [f"{f.title()} {last.title()}" for f, last in zip(_stretch(_FIRST, world, count), lasts, strict=True)]


def place_names(world: int, count: int) -> list[str]:
    """Names such as ``Velmburg``."""
    return [name.title() for name in _stretch(_PLACES, world, count)]


def short_names(world: int, count: int) -> list[str]:
    """Names such as ``bor``: three letters; all names differ."""
    return _stretch(_SHORT, world, count)


def short_relations(world: int, count: int) -> list[str]:
    """Relations such as ``ku``: two letters; all relations differ."""
    return _stretch(_SHORT_RELATIONS, world, count)
