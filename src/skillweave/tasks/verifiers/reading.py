"""Read numbers as people and models write them, each as one exact fraction: ``2 1/2``, ``1.5 x 10^3``, ``-$1,234.50``.

:mod:`~skillweave.tasks.verifiers.items` decides which of them belong together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_letters
from typing import NamedTuple

from skillweave.tasks.verifiers.exact_numbers import Decimal, numeral, power, times_ten_to
from skillweave.tasks.verifiers.number_words import FRACTION_WORDS, ORDINAL_WORDS, PARTS, SCALES, number_in_words
from skillweave.tasks.verifiers.numerals import plain_text, tokens


class Number(NamedTuple):
    """A number as it is written.

    - ``percent``: whether a percent sign (or the word) follows it
    - ``rounded``: the fraction that it is the rounding of, if that is written before it: ``2/3 ≈ 0.67``
    """

    value: Fraction
    percent: bool
    rounded: Fraction | None = None


@dataclass(frozen=True)
class Item:
    """Something of the form of a number, in the tokens ``first`` to ``last`` (inclusive).

    - ``number`` is None if it is not one number but an expression, a range, a time or a list.
    - ``aside``: it is in parentheses with words, or in brackets, or it is an ordinal ("2nd", "1. "). Other items are
      preferred.
    - ``words``: it is written in words ("two thirds"), which only says what its neighbours are part of.
    """

    number: Number | None
    first: int
    last: int
    aside: bool = False
    words: bool = False


_VARIABLES = set("xyznieapqXYZN")  # letters that multiply a number; other letters are units
_UNKNOWNS = set("xyznXYZN")  # those of them that are not an article or an abbreviation
_MULTIPLES = ("twice", "double", "triple", "thrice")
_TAKEN_OF = FRACTION_WORDS | {
    *("square", "cube", "root", "percent", "percentage", "double", "triple", "multiple"),
    *("factorial", "reciprocal", "inverse", "opposite", "logarithm", "log", "sine", "cosine", "tangent"),
}
ARTICLES = ("the", "that", "those", "these", "this", "its", "all")
_AFTER_OPERATION = ("squared", "cubed", "factorial", "repeating", "recurring", "doubled", "tripled", "halved")
_DEGREES = ("degree", "degrees", "deg", "celsius", "fahrenheit", "centigrade", "c", "f")
_CJK = "\u2e80"  # from here on: scripts that write words without spaces
_CJK_SCALES = {"万": 10**4, "萬": 10**4, "만": 10**4, "億": 10**8, "亿": 10**8, "억": 10**8}
_CJK_TENS = frozenset("十百千万萬億亿")  # words that end with one are a number that goes on: 二十5
_CJK_UNSURE = re.compile(r"[百千천백](?![克米瓦卡焦帕赫伏字])")  # scales that also begin units, such as 千克 (kilogram)
_FORMULA = 20
"""Tokens behind a scale in which a dollar sign may end a formula."""
_MONEY_SCALES = {"m": 10**6, "b": 10**9}
_FUNCTIONS = ("sqrt", "root", "log", "ln", "exp", "sin", "cos", "tan")
_ORDINALS = ("st", "nd", "rd", "th")
_PERCENT_WORDS = ("percent", "pct", "percentage")


class Reader:
    """Reads the items of one text from left to right."""

    def __init__(self, text: str, decimal: Decimal) -> None:
        self.tokens = tokens(plain_text(text))
        self.decimal = decimal
        self.items: list[Item] = []
        self.exponents: set[int] = set()
        """The last tokens of exponents of units and variables."""

    def kind(self, at: int) -> str:
        return self.tokens[at].kind if 0 <= at < len(self.tokens) else ""

    def text(self, at: int) -> str:
        return self.tokens[at].text if 0 <= at < len(self.tokens) else ""

    def skip(self, at: int, step: int = 1) -> int:
        """Return the index of the next token, from ``at`` on, that is not a space."""
        while self.kind(at) == "space":
            at += step
        return at

    def run(self) -> list[Item]:
        at = 0
        while at < len(self.tokens):
            kind = self.kind(at)
            if kind == "digits":
                if self.in_name(at):
                    at += 1
                    continue
                item = self.item(at)
                self.items.append(item)
                at = item.last
            elif kind == "word":
                last = number_in_words(self.tokens, at)
                if last is not None:
                    self.items.append(Item(None, at, last, words=True))
                    at = last
            elif kind == "macro":  # it does not stand for a number that can be read
                self.items.append(Item(None, at, at))
            elif kind == "power" and self.kind(at - 1) in ("word", "close"):  # the exponent of a unit: m^2
                at = self.behind_exponent(at) - 1
                self.exponents.add(at)
            at += 1
        return self.items

    def in_name(self, at: int) -> bool:
        """Whether these digits belong to a name or a unit (CO2, cm2, COVID-19); never after Chinese words."""
        before = self.kind(at - 1)
        return (before == "word" and self.text(at - 1)[-1] < _CJK) or (
            before == "sign" and self.kind(at - 2) == "word" and self.text(at - 1) == "-"
        )

    def behind_exponent(self, at: int) -> int:
        """Return the token after the exponent of the power sign at ``at``, or after the sign if there is none."""
        at += 1
        opened = self.kind(at) == "open"
        inside = at + 1 if opened else at
        inside += self.kind(inside) == "sign"
        if self.kind(inside) not in ("digits", "word"):
            return at
        return inside + 2 if opened and self.kind(inside + 1) == "close" else inside + 1

    def item(self, start: int) -> Item:
        """Return the item whose first digits are at ``start``."""
        value, last = self.value(start)
        first, negative = self.sign(start)
        if value is not None and negative:
            value = -value
        aside = False
        after = self.skip(last + 1)
        word = self.text(after).lower() if self.kind(after) == "word" else ""
        glued = after == last + 1
        if glued and word in _ORDINALS:
            aside, last = True, after
        elif word in SCALES and (word != "k" or glued):
            value, last = None if value is None else value * SCALES[word], after
        elif glued and word[:1] in _CJK_SCALES:
            whole = len(word) == 1 and self.kind(after + 1) == "digits"  # 4万2千
            value = None if value is None or whole else value * _CJK_SCALES[word[0]]
            last = after if len(word) == 1 else last
        elif glued and _CJK_UNSURE.match(word):
            value = None
        elif word in PARTS or word == "quarters":
            value, last = self.part(value, last, after)
        elif glued and word in _MONEY_SCALES and self.is_money(first, after):
            value, last = None if value is None else value * _MONEY_SCALES[word], after
        elif (
            (glued and word and self.text(after) in _VARIABLES)
            or word == "pi"
            or self.kind(after) == "macro"
            or (
                glued
                and (
                    (
                        self.kind(after) == "open"
                        and (self.kind(after + 1) in ("digits", "sign") or self.text(after + 1) in _UNKNOWNS)
                    )
                    or (self.text(after) == "°" and self.kind(after + 1) == "digits")
                )
            )
        ):
            value = None
        elif glued and word and self.kind(after + 1) == "digits":  # 1h30, 10C2, 0b101; but not 5m2
            is_unit = self.text(after + 1) in ("2", "3") and self.text(after) not in ("C", "P")
            value = value if is_unit else None
        percent = self.kind(after) == "percent" or word in _PERCENT_WORDS
        if percent:
            last = after
        elif word == "per" and self.text(self.skip(after + 1)).lower() == "cent":
            percent, last = True, self.skip(after + 1)
        zero = self.below_zero(last)
        if zero is not None:
            value, last = None if value is None or negative else -value, zero
        if (
            self.kind(start - 1) == "macro"
            or self.text(start - 1)[-1:] in _CJK_TENS
            or self.expression_before(first)
            or self.expression_behind(last)
        ):
            value = None
        return Item(None if value is None else Number(value, percent), first, last, aside)

    def is_money(self, first: int, scale: int) -> bool:
        """Return whether a currency stands before the item, and its scale is no unit: £5m, and not $5m = 500cm$."""
        if "currency" not in (self.kind(first), self.kind(first + 1)) or self.kind(scale + 1) == "power":
            return False
        ahead = range(scale + 1, scale + _FORMULA)
        closed = any(self.text(at) == "$" and self.kind(at + 1) != "digits" for at in ahead)
        return self.text(scale).isupper() or not closed

    def part(self, value: Fraction | None, last: int, word: int) -> tuple[Fraction | None, int]:
        """Return the value of "1 third" or "3 quarters", and its last token. It is None if they may mean two things."""
        parts = PARTS.get(self.text(word).lower())
        behind = self.text(self.skip(word + 1)).lower() if self.kind(self.skip(word + 1)) == "word" else ""
        if parts is None:  # from four quarters on they are coins or seasons, unless something is divided
            return (value, last) if value is not None and value >= 4 and behind != "of" else (None, word)
        if value != 1 and behind not in ("", "of"):  # 5 third graders, 3 half days
            return value, last
        is_part = value == 1 and parts != 4 and behind in ("", "of")
        return (Fraction(1, parts) if is_part else None), word

    def below_zero(self, last: int) -> int | None:
        """Return the last token of "below zero" after the token ``last``, if it stands there: "5 degrees below 0"."""
        at = self.skip(last + 1)
        if self.text(at) == "°":
            at = self.skip(at + 1)
        for _ in range(2):
            if self.text(at).lower() in _DEGREES:
                at = self.skip(at + 1)
        zero = self.skip(at + 1)
        below = self.text(at).lower() in ("below", "under")
        return zero if below and self.text(zero).lower() in ("zero", "0") else None

    def sign(self, start: int) -> tuple[int, bool]:
        """Return where the item begins, including its sign and currency, and whether the sign is a minus."""
        first = start
        at = start - 1
        if self.kind(self.skip(at, -1)) == "currency":
            first = at = self.skip(at, -1)
            at -= 1
        spaced = self.skip(at, -1)
        if self.kind(at) == "sign":
            before = self.kind(at - 1)
            if before not in ("digits", "word", "close", "percent", "macro"):
                return (at, self.text(at) == "-")
        elif self.kind(spaced) == "sign" and (
            self.kind(self.skip(spaced - 1, -1)) in ("equals", "currency")
            or self.text(self.skip(spaced - 1, -1)).lower() == "is"
        ):
            return (spaced, self.text(spaced) == "-")
        elif self.text(spaced).lower() == "negative" or (
            self.text(spaced).lower() == "minus" and self.kind(self.skip(spaced - 1, -1)) != "digits"
        ):
            return (spaced, True)
        return first, False

    def expression_before(self, first: int) -> bool:
        """Whether something before the item makes it a part of an expression: ``n + 1``, ``x < 5``, ``sqrt(9)``."""
        at = self.skip(first - 1, -1)
        kind, spaced = self.kind(at), at != first - 1
        word = self.text(at).lower()
        if word in ARTICLES:  # half of the 9, twice the 9
            behind = self.skip(at - 1, -1)
            if self.text(behind).lower() in ("of", "half", *_MULTIPLES):
                at, word = behind, self.text(behind).lower()
                if word == "half":
                    return True
        if kind in ("order", "macro") or word in _FUNCTIONS or word in _MULTIPLES:
            return True
        if word == "of" and self.text(self.skip(at - 1, -1)).lower() in _TAKEN_OF:
            return True
        if kind == "open" and self.text(at) != "[":
            inner = self.kind(at - 1)
            named = inner == "word" or (inner == "digits" and self.in_name(at - 1))
            return inner == "macro" or self.text(at - 1) == ")" or (named and self.text(at) == "(")
        if kind in ("sign", "times", "slash"):
            left = self.skip(at - 1, -1)
            if self.kind(left) in ("close", "macro") or left in self.exponents:
                return True
            if self.kind(left) == "word":  # "x - 42" is an expression, "Answer - 42" is not
                bullet = spaced and self.text(at) == "-" and len(self.text(left)) > 1
                return not bullet and not (kind == "times" and not spaced)
        return False

    def expression_behind(self, last: int) -> bool:
        """Whether something after the item makes it a part of an expression: ``9 - x``, ``9/n``, ``(9)^2``."""
        at = self.skip(last + 1)
        if self.kind(at) == "close":
            return self.text(at + 1) == "^" or (self.text(at), self.text(at + 1)) == (")", "(")
        if self.text(at).lower() in _AFTER_OPERATION or self.is_raised_in_words(at):
            return True
        letter = self.skip(at + 1)
        if self.kind(at) in ("sign", "times") and self.kind(letter) == "word" and self.kind(letter + 1) != "word":
            function = self.text(letter).lower() in (*_FUNCTIONS, "pi")
            alone = self.kind(letter + 1) != "space" or self.kind(letter + 2) not in ("word", "digits")
            single = len(self.text(letter)) == 1 and self.text(letter) in ascii_letters
            even = (at > last + 1) == (letter > at + 1) and (at > last + 1 or self.text(at) != "-")  # not 5-m, *5* m
            if function or (single and even and alone):  # 1 + i, and not 5 - a lot
                return True
        return self.kind(at) in ("sign", "times", "slash") and self.text(letter) in _UNKNOWNS

    def is_raised_in_words(self, at: int) -> bool:
        """Whether "to the third" or "to the third power" stands at a token, and not "to the third floor"."""
        the = self.skip(at + 1)
        ordinal = self.skip(the + 1)
        behind = self.skip(ordinal + 1)
        words = [self.text(one).lower() for one in (at, the, ordinal)]
        power = self.kind(behind) != "word" or self.text(behind).lower() == "power"
        return words[:2] == ["to", "the"] and words[2] in ORDINAL_WORDS and power

    def value(self, start: int) -> tuple[Fraction | None, int]:
        """Return the unsigned number from ``start`` on, or None if it is not one, and its last token."""
        value, last = self.grouped(start)
        plain = last == start and self.text(start).isdigit()
        exponent = self.text(last + 1) in ("e", "E") and self.integer(last + 2)
        if exponent:
            number, last = exponent
            return (None if value is None else times_ten_to(value, number)), last
        raised, end = self.raised(value, last)
        if end != last:
            return raised, end
        scale = self.times_ten(last)
        if scale is not None:
            number, last = scale
            return (None if value is None else times_ten_to(value, number)), last
        below = self.below(last)
        if below is not None:
            return (None if value is None or not below[0] else value / below[0]), below[1]
        if plain and value is not None:
            mixed = self.mixed(last, value)
            if mixed is not None:
                return mixed
        return value, last

    def grouped(self, start: int) -> tuple[Fraction | None, int]:
        """Return the value of the digits at ``start``, with groups of three after spaces, and the last token."""
        text, last = self.text(start), start
        if text.isdigit() and len(text) <= 3 and text[0] != "0":
            while self.text(last + 1) == " " and re.fullmatch(r"[0-9]{3}(?:[.,][0-9]+)?", self.text(last + 2)):
                text, last = text + self.text(last + 2), last + 2
                if not self.text(last).isdigit():
                    break
        return numeral(text, self.decimal), last

    def integer(self, at: int) -> tuple[int, int] | None:
        """Return the integer at ``at``, with its sign, and its last token. It may be in braces or parentheses."""
        opened = self.kind(at) == "open"
        at += opened
        negative = self.text(at) == "-"
        at += self.kind(at) == "sign"
        if not self.text(at).isascii() or not self.text(at).isdigit() or len(self.text(at)) > 6:
            return None
        end = at + 1 if opened else at
        if opened and self.kind(end) != "close":
            return None
        return (-int(self.text(at)) if negative else int(self.text(at))), end

    def raised(self, value: Fraction | None, last: int) -> tuple[Fraction | None, int]:
        """Return the value with the exponent after the token ``last``, if there is one, and the last token."""
        at = self.skip(last + 1)
        spaced = at != last + 1
        if self.kind(at) != "power" or (self.text(at) == "**" and (self.kind(at + 1) == "space") != spaced):
            return value, last
        inner = self.skip(at + 1)
        exponent = self.integer(inner)
        if exponent is None:
            # Two asterisks may also end bold text.
            unread = self.text(at) == "^" or self.kind(inner) == "digits"
            return (None, self.behind_exponent(at) - 1) if unread else (value, last)
        number, end = exponent
        if self.kind(end + 1) == "power" and self.text(end + 1) == "^":
            return None, self.behind_exponent(end + 1) - 1
        return (None if value is None else power(value, number)), end

    def times_ten(self, last: int) -> tuple[int, int] | None:
        """Return the exponent of a following "x 10^3" and its last token."""
        at = self.skip(last + 1)
        if self.kind(at) != "times" and self.text(at) not in ("x", "X"):
            return None
        ten = self.skip(at + 1)
        power_at = self.skip(ten + 1)
        if self.text(ten) != "10" or self.kind(power_at) != "power":
            return None
        return self.integer(self.skip(power_at + 1))

    def below(self, last: int) -> tuple[Fraction | None, int] | None:
        """Return the denominator after a slash (None if not a number) and its last token; None without a slash."""
        at = self.skip(last + 1)
        if self.kind(at) != "slash":
            return None
        digits = self.skip(at + 1)
        sign = -1 if self.text(digits) == "-" else 1
        digits += self.kind(digits) == "sign"
        if self.kind(digits) != "digits":
            return None
        value, end = numeral(self.text(digits), self.decimal), digits
        further = self.skip(end + 1)
        if self.kind(further) == "slash" and self.kind(self.skip(further + 1)) == "digits":  # a date
            return None, self.skip(further + 1)
        return (None if value is None else sign * value), end

    def mixed(self, last: int, whole: Fraction) -> tuple[Fraction | None, int] | None:
        """Return an integer plus the proper fraction after it ("2 1/2", "2 and a half"), and the last token."""
        at = self.skip(last + 1)
        if self.text(at).lower() == "and":
            at = self.skip(at + 1)
            part = self.skip(at + 1)
            if self.text(at).lower() in ("a", "one") and self.text(part).lower() in PARTS:
                return whole + Fraction(1, PARTS[self.text(part).lower()]), part
        if at == last + 1 or self.kind(at) != "digits" or not self.text(at).isdigit() or self.kind(at - 1) != "space":
            return None
        below = self.below(at)
        above = numeral(self.text(at), self.decimal)
        if below is None or above is None or not below[0] or above >= below[0] or below[0].denominator != 1:
            return None
        return whole + above / below[0], below[1]
