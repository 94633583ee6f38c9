"""The words of numbers: scales and parts after a numeral (``5 million``, ``2 thirds``), and numbers in words alone.

The value of a number in words (``twenty-five``, ``two thirds``) is not read: it does not count as an answer. But it
makes the numeral beside it a part of something else, which must not be read as that numeral: ``10 divided by two``,
``2 and three quarters``, ``half past 3``.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from skillweave.tasks.verifiers.numerals import Token, plain_text, tokens

_COUNTS = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
_ORDINALS = {
    "third": 3,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "hundredth": 100,
    "thousandth": 1000,
}
PARTS = {"half": 2, "quarter": 4, **_ORDINALS}
"""A word for one part -> how many make the whole. An ordinal may also stand before a noun: ``5 third graders``."""
_PLURALS = {"halves": 2, **{f"{word}s": parts for word, parts in _ORDINALS.items()}}
SCALES: dict[str, int | Fraction] = {
    **_COUNTS,
    **{f"{word}s": scale for word, scale in _COUNTS.items()},
    "tens": 10,
    "k": 10**3,
    "mn": 10**6,
    "bn": 10**9,
    **{word: Fraction(1, parts) for word, parts in _PLURALS.items()},
}
"""Words that multiply the number before them. Quarters are not among them: they are also coins and seasons."""
ORDINAL_WORDS = frozenset(["second", "nth", *_ORDINALS])
FRACTION_WORDS = frozenset([*PARTS, *_PLURALS, "quarters"])

_ONES = frozenset(
    [
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
        *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
    ]
)
_TENS = frozenset(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"])
_UNSURE = frozenset(["one", *PARTS])
"""Words that are a number only after some others: not in "this one and 5", "in the second half and 3"."""
_BEFORE_PART = frozenset(
    [
        *("a", "about", "and", "answer", "are", "at", "by", "equals", "exactly", "in", "is", "of", "or", "past", "per"),
        *("plus", "minus", "than", "times", "to", "was"),
    ]
)
_BEFORE_ANSWER = frozenset(["minus", "negative", "plus", "about", "approximately", "exactly", "a", "just", "only"])


def number_in_words(split: Sequence[Token], at: int) -> int | None:
    """Return the last token of the number in words that begins at the token ``at``; None if there is none."""
    word = split[at].text.lower()
    if word not in _ONES and word not in _TENS and word not in _COUNTS and word not in PARTS:
        return None
    if word in _UNSURE:
        before = at - 2 if at and split[at - 1].kind == "space" else at - 1
        said = split[before].text.lower() if before >= 0 and split[before].kind == "word" else ""
        before_part = said == "a" if word in ORDINAL_WORDS else not said or said in _BEFORE_PART
        if not before_part and not _tells_time(split, at):
            return None
    last = at
    while (
        last + 2 < len(split)
        and (split[last + 1].kind == "space" or split[last + 1].text == "-")
        and _goes_on(split[last + 2].text.lower())
    ):
        last += 2
    return last


def _tells_time(split: Sequence[Token], at: int) -> bool:
    """Whether "half past" or "quarter to" stands at a token. "Half to" tells no time: "She gave half to 5 friends"."""
    behind = split[at + 2].text.lower() if at + 2 < len(split) and split[at + 1].kind == "space" else ""
    return (split[at].text.lower(), behind) in (("half", "past"), ("quarter", "past"), ("quarter", "to"))


def _goes_on(word: str) -> bool:
    return word in _ONES or word in _TENS or word in _COUNTS or word in FRACTION_WORDS


def goes_on_in_digits(word: str) -> bool:
    """Return whether a number in words that ends with this word may go on in digits: ``twenty 5``."""
    return word.lower() in _TENS or word.lower() in _COUNTS


def is_said_in_words(clause: str) -> bool:
    """Return whether a clause begins with a number in words: ``minus six``, ``two thirds``, not ``one that``."""
    split = [token for token in tokens(plain_text(clause)) if token.kind in ("word", "space", "sign")]
    words = [at for at, token in enumerate(split) if token.kind == "word"]
    first = next((at for at in words if split[at].text.lower() not in _BEFORE_ANSWER), None)
    last = None if first is None else number_in_words(split, first)
    return last is not None and (last != first or split[last].text.lower() != "one" or words[-1] == first)
