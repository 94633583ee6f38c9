"""Numbers as people and models write them, read out of a text as exact fractions.

What is written with more than one numeral is one number (``2 1/2``, ``1.5 x 10^3``) or none at all (a sum, a range, a
date, a time, a list): its last numeral is never taken for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple

from skillweave.tasks.verifiers.numerals import Token, plain_text, tokens

Decimal = Literal["point", "comma"]


class Number(NamedTuple):
    """``value`` is the number as it is written; ``percent``: a percent sign (or the word) follows it."""

    value: Fraction
    percent: bool


@dataclass(frozen=True)
class Item:
    """Something of the form of a number between two tokens (``first`` to ``last``, inclusive).

    ``number`` is None where it is none: an expression, a range, a time, a list. ``aside``: it stands in parentheses
    with words, or in brackets, or counts something off ("2nd", "1. "), so that others are preferred.
    """

    number: Number | None
    first: int
    last: int
    aside: bool = False


_DIGITS_AT_MOST = 1000
_POWER_BITS_AT_MOST = 20_000
_VARIABLES = set("xyznieapqXYZN")  # letters that multiply a number; the others are units
_SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "k": 10**3,
    "million": 10**6,
    "mn": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
}
_FUNCTIONS = ("sqrt", "log", "ln", "exp", "sin", "cos", "tan")
_ORDINALS = ("st", "nd", "rd", "th")
_LIST_WORDS = ("and", "or", "to")
_PERCENT_WORDS = ("percent", "pct", "percentage")
_MEASURES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("week", "weeks"),
        ("d", "day", "days"),
        ("h", "hr", "hrs", "hour", "hours"),
        ("m", "min", "mins", "minute", "minutes"),
        ("s", "sec", "secs", "second", "seconds"),
    ),
    (("year", "years"), ("month", "months"), ("week", "weeks"), ("day", "days")),
    (("mile", "miles"), ("yd", "yard", "yards"), ("ft", "foot", "feet"), ("in", "inch", "inches")),
    (("lb", "lbs", "pound", "pounds"), ("oz", "ounce", "ounces")),
    (("dollar", "dollars", "euro", "euros"), ("cent", "cents")),
    (("km",), ("m",), ("cm",), ("mm",)),
    (("kg",), ("g",), ("mg",)),
)
_POINT = re.compile(r"(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:'[0-9]{3})+|[0-9]+(?:_[0-9]+)+)?(?:\.[0-9]+)?")
_COMMA = re.compile(r"(?:[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+|[0-9]{1,3}(?:'[0-9]{3})+|[0-9]+(?:_[0-9]+)+)?(?:,[0-9]+)?")


def numeral(text: str, decimal: Decimal) -> Fraction | None:
    """The value of digits with their separators (``1,234.5``); None where they are no number (``1.2.3``)."""
    form = _POINT if decimal == "point" else _COMMA
    if len(text) > _DIGITS_AT_MOST or not form.fullmatch(text):
        return None
    group, point = (",", ".") if decimal == "point" else (".", ",")
    return Fraction(text.replace(group, "").replace("'", "").replace("_", "").replace(point, "."))


def power(base: Fraction, exponent: int) -> Fraction | None:
    """``base ** exponent``; None where that is not defined, or too long to be an answer."""
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
    if bits > _POWER_BITS_AT_MOST or (base == 0 and exponent <= 0):
        return None
    return base**exponent


class _Reader:
    """Reads the items of one text from left to right."""

    def __init__(self, text: str, decimal: Decimal) -> None:
        self.tokens = tokens(plain_text(text))
        self.decimal = decimal
        self.items: list[Item] = []

    def kind(self, at: int) -> str:
        return self.tokens[at].kind if 0 <= at < len(self.tokens) else ""

    def text(self, at: int) -> str:
        return self.tokens[at].text if 0 <= at < len(self.tokens) else ""

    def skip(self, at: int, step: int = 1) -> int:
        """The next token from ``at`` on that is no space."""
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
            elif kind == "macro":  # what it stands for is no number that could be read
                self.items.append(Item(None, at, at))
            elif kind == "power" and self.kind(at - 1) in ("word", "close"):  # of a unit: m^2
                at = self.behind_exponent(at) - 1
            at += 1
        return self.items

    def in_name(self, at: int) -> bool:
        """Whether these digits belong to a name or a unit: CO2, cm2, COVID-19."""
        before = self.kind(at - 1)
        return before == "word" or (before == "sign" and self.kind(at - 2) == "word" and self.text(at - 1) == "-")

    def behind_exponent(self, at: int) -> int:
        """The token behind the exponent that the power sign at ``at`` stands before, or behind the sign itself."""
        at += 1
        opened = self.kind(at) == "open"
        inside = at + 1 if opened else at
        inside += self.kind(inside) == "sign"
        if self.kind(inside) not in ("digits", "word"):
            return at
        return inside + 2 if opened and self.kind(inside + 1) == "close" else inside + 1

    def item(self, start: int) -> Item:
        """The item whose first digits stand at ``start``."""
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
        elif word in _SCALES and (word != "k" or glued):
            value, last = None if value is None else value * _SCALES[word], after
        elif (
            (glued and word and self.text(after) in _VARIABLES)
            or self.kind(after) == "macro"
            or (
                glued
                and (
                    (self.kind(after) == "open" and self.kind(after + 1) in ("digits", "sign"))
                    or (self.text(after) == "°" and self.kind(after + 1) == "digits")
                )
            )
        ):
            value = None
        percent = self.kind(after) == "percent" or word in _PERCENT_WORDS
        if percent:
            last = after
        if self.kind(start - 1) == "macro" or self.expression_before(first):
            value = None
        return Item(None if value is None else Number(value, percent), first, last, aside)

    def sign(self, start: int) -> tuple[int, bool]:
        """Where the item begins, with its sign and currency, and whether the sign is a minus."""
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
        elif self.kind(spaced) == "sign" and self.kind(self.skip(spaced - 1, -1)) == "equals":
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
        if kind in ("order", "macro") or self.text(at).lower() in _FUNCTIONS:
            return True
        if kind == "open" and self.text(at) != "[":
            inner = self.kind(at - 1)
            named = inner == "word" or (inner == "digits" and self.in_name(at - 1))
            return inner == "macro" or (named and self.text(at) == "(")
        if kind in ("sign", "times", "slash"):
            left = self.skip(at - 1, -1)
            if self.kind(left) in ("close", "macro"):
                return True
            if self.kind(left) == "word":  # "Answer - 42" is none, "x - 42" is one
                bullet = spaced and self.text(at) == "-" and len(self.text(left)) > 1
                return not bullet and not (kind == "times" and not spaced)
        return False

    def value(self, start: int) -> tuple[Fraction | None, int]:
        """The unsigned number from ``start`` on, None where it is not one, and its last token."""
        value, last = self.grouped(start)
        plain = last == start and self.text(start).isdigit()
        exponent = self.text(last + 1) in ("e", "E") and self.integer(last + 2)
        if exponent:
            number, last = exponent
            return (None if value is None else _times_ten_to(value, number)), last
        raised, end = self.raised(value, last)
        if end != last:
            return raised, end
        scale = self.times_ten(last)
        if scale is not None:
            number, last = scale
            return (None if value is None else _times_ten_to(value, number)), last
        below = self.below(last)
        if below is not None:
            return (None if value is None or not below[0] else value / below[0]), below[1]
        if plain and value is not None:
            mixed = self.mixed(last, value)
            if mixed is not None:
                return mixed
        return value, last

    def grouped(self, start: int) -> tuple[Fraction | None, int]:
        """Digits at ``start`` with the groups of three that spaces set off from them."""
        text, last = self.text(start), start
        if text.isdigit() and len(text) <= 3 and text[0] != "0":
            while self.text(last + 1) == " " and re.fullmatch(r"[0-9]{3}(?:[.,][0-9]+)?", self.text(last + 2)):
                text, last = text + self.text(last + 2), last + 2
                if not self.text(last).isdigit():
                    break
        return numeral(text, self.decimal), last

    def integer(self, at: int) -> tuple[int, int] | None:
        """The integer at ``at``, with a sign, and its last token; in braces or parentheses where it is given so."""
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
        """The power that stands behind the token ``last``, if one does: its value and its own last token."""
        at = self.skip(last + 1)
        spaced = at != last + 1
        if self.kind(at) != "power" or (self.text(at) == "**" and (self.kind(at + 1) == "space") != spaced):
            return value, last
        inner = self.skip(at + 1)
        exponent = self.integer(inner)
        if exponent is None:
            # Two stars may also end bold text.
            unread = self.text(at) == "^" or self.kind(inner) == "digits"
            return (None, self.behind_exponent(at) - 1) if unread else (value, last)
        number, end = exponent
        if self.kind(end + 1) == "power" and self.text(end + 1) == "^":
            return None, self.behind_exponent(end + 1) - 1
        return (None if value is None else power(value, number)), end

    def times_ten(self, last: int) -> tuple[int, int] | None:
        """The exponent of a following "x 10^3" and its last token."""
        at = self.skip(last + 1)
        if self.kind(at) != "times" and self.text(at) not in ("x", "X"):
            return None
        ten = self.skip(at + 1)
        power_at = self.skip(ten + 1)
        if self.text(ten) != "10" or self.kind(power_at) != "power":
            return None
        return self.integer(self.skip(power_at + 1))

    def below(self, last: int) -> tuple[Fraction | None, int] | None:
        """The denominator that follows a slash, None within where it is not a number, and its last token."""
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
        """A proper fraction behind a whole number ("2 1/2", "2 and 1/2"): the sum, and its last token."""
        at = self.skip(last + 1)
        if self.text(at).lower() == "and":
            at = self.skip(at + 1)
        if at == last + 1 or self.kind(at) != "digits" or not self.text(at).isdigit() or self.kind(at - 1) != "space":
            return None
        below = self.below(at)
        above = numeral(self.text(at), self.decimal)
        if below is None or above is None or not below[0] or above >= below[0] or below[0].denominator != 1:
            return None
        return whole + above / below[0], below[1]


def _times_ten_to(value: Fraction, exponent: int) -> Fraction | None:
    scale = power(Fraction(10), exponent)
    return None if scale is None else value * scale


def _joined(reader: _Reader, one: Item, other: Item) -> str:
    """How two items next to each other belong together.

    ``expression``; ``pair`` (a list whatever stands beside it), ``list`` (one if it goes on); ``equal`` and ``differ``
    (an equals sign stands between them); or ``""``.
    """
    between = reader.tokens[one.last + 1 : other.first]
    if len(between) > 8:
        return ""
    kinds = [token.kind for token in between if token.kind != "space"]
    words = [token.text.lower() for token in between if token.kind == "word"]
    if kinds == ["equals"]:
        return "differ" if _differ(one, other) else "equal"
    operator = len(kinds) == 1 and kinds[0] in ("times", "slash", "order", "sign")
    if operator or (kinds == ["colon"] and len(between) in (1, 3)):  # 7:30, 5 : 3
        return "expression"
    if not between and reader.kind(other.first) == "sign":  # 10-3
        return "expression"
    if kinds == [] and reader.kind(other.first) == "sign":  # 10 -3
        return "expression"
    if words in (["x"], ["times"], ["plus"], ["minus"], ["out", "of"]) and len(kinds) == len(words):
        return "expression"
    if one.number is None and kinds and all(kind in ("open", "power", "sign") for kind in kinds):  # 2^{2^2}
        return "expression"
    if words[:1] == ["or"] and kinds == ["word", "word", "equals"]:  # x = 2 or x = 3
        return "pair"
    if kinds in (["newline", "sign"], ["newline", "times"]):  # bullets
        return "list"
    if _compound(reader, one, between):
        return "expression"
    if all(kind in ("between", "newline", "word") for kind in kinds) and all(word in _LIST_WORDS for word in words):
        before = reader.text(reader.skip(one.first - 1, -1)).lower()
        return "" if words == ["to"] and before == "from" else "pair" if words else "list"
    return ""


def _differ(one: Item, other: Item) -> bool:
    """Whether two numbers that are said to be equal are not, not even rounded: ``5 = 4``."""
    if one.number is None or other.number is None or one.number.percent or other.number.percent:
        return False
    a, b = one.number.value, other.number.value
    return abs(a - b) > max(abs(a), abs(b)) / 50


def _compound(reader: _Reader, one: Item, between: list[Token]) -> bool:
    """Whether ``5 ft 3 in`` begins here: two measures of one quantity."""
    words = [token.text.lower() for token in between if token.kind == "word" and token.text.lower() != "and"]
    if len(words) != 1 or any(token.kind not in ("word", "space", "between") for token in between):
        return False
    at = next(index for index in range(one.last + 1, len(reader.tokens)) if reader.kind(index) == "digits")
    unit = reader.skip(at + 1)
    smaller = reader.text(unit).lower()
    return any(
        words[0] in bigger and any(smaller in names for names in family[level + 1 :])
        for family in _MEASURES
        for level, bigger in enumerate(family)
    )


def read_items(text: str, decimal: Decimal = "point", *, strict: bool = False) -> list[Item]:
    """The items of a text in their order, those left out that the text itself denies ("not 3").

    ``strict``: two numbers next to each other are a list already, as within a ``\\boxed{}``; elsewhere it takes three.
    """
    reader = _Reader(text, decimal)
    items = reader.run()
    if not items:
        return []
    strict = strict or not any(token.kind in ("word", "equals") for token in reader.tokens)
    links = [_joined(reader, one, other) for one, other in pairwise(items)]
    broken = _broken(links, strict)
    groups = _asides(reader.tokens)
    numbered = _enumerators(reader, items)
    equated = _equated(items, links, broken)
    return [
        replace(
            item, number=None if at in broken else item.number, aside=item.aside or at in numbered or groups[item.first]
        )
        for at, item in enumerate(items)
        if at not in equated and not _denied(reader, item.first)
    ]


def _equated(items: list[Item], links: list[str], broken: set[int]) -> set[int]:
    """Which items are the parts of an expression that is said to equal the number before it: ``42 = 6 * 7``."""
    equated: set[int] = set()
    for at, link in enumerate(links):
        if link in ("equal", "differ") and at not in broken and items[at].number is not None:
            end = at + 1
            while end in broken and end not in equated:
                equated.add(end)
                if end == len(links) or links[end] != "expression":
                    break
                end += 1
    return equated


def _broken(links: list[str], strict: bool) -> set[int]:
    """Which items are parts of an expression or of a list."""
    broken: set[int] = set()
    for at, link in enumerate(links):
        if link in ("expression", "pair") or (link == "list" and strict):
            broken |= {at, at + 1}
        elif link == "list" and at + 1 < len(links) and links[at + 1] in ("list", "pair"):
            broken |= {at, at + 1, at + 2}
    # "5 = 4" is wrong whatever is asked; in "6 * 7 = 42" the 7 is a part of what equals 42.
    return broken.union(*({at, at + 1} - broken for at, link in enumerate(links) if _is_false(at, link, broken)))


def _is_false(at: int, link: str, broken: set[int]) -> bool:
    return link == "differ" and not {at, at + 1} & broken


def _asides(found: list[Token]) -> list[bool]:
    """For each token whether it stands in parentheses with words in them, or in brackets."""
    aside = [False] * len(found)
    opened: list[int] = []
    words = [0]
    for token in found:
        words.append(words[-1] + (token.kind == "word"))
    spans: list[tuple[int, int]] = []
    for at, token in enumerate(found):
        if token.kind == "open" and token.text != "{":
            opened.append(at)
        elif token.kind == "close" and token.text != "}" and opened:
            start = opened.pop()
            # f(2) is no aside; nor is a group that holds the whole of an expression.
            applied = start > 0 and found[start - 1].kind in ("word", "macro", "close")
            if (found[start].text == "[" or words[at] > words[start]) and not applied:
                spans.append((start, at))
    changes = [0] * (len(found) + 1)
    for start, end in spans:
        changes[start] += 1
        changes[end + 1] -= 1
    depth = 0
    for at in range(len(found)):
        depth += changes[at]
        aside[at] = depth > 0
    return aside


def _enumerators(reader: _Reader, items: list[Item]) -> set[int]:
    """Which items count off the lines of a text ("1. Add 5."), where at least two do."""
    starts = [
        at
        for at, item in enumerate(items)
        if item.first == item.last
        and reader.kind(item.first - 1) in ("", "newline")
        and reader.text(item.first + 1) in (".", ")")
        and reader.kind(item.first + 2) == "space"
    ]
    return set(starts) if len(starts) > 1 else set()


def _denied(reader: _Reader, first: int) -> bool:
    """Whether the words before an item deny it: "not 3", "isn't equal to 3", "instead of 3", "rather than 3"."""
    at = first - 1
    words: list[str] = []
    while len(words) < 4 and reader.kind(at) in ("space", "word"):
        if reader.kind(at) == "word":
            words.append(reader.text(at).lower())
        at -= 1
    if words[:2] in (["of", "instead"], ["than", "rather"]):
        return True
    for word in words:
        if word in ("not", "never", "cannot") or word.endswith("n't"):
            return True
        if word not in ("be", "equal", "to", "the", "a", "number", "value", "exactly", "simply", "just", "only"):
            return False
    return False


def pick(items: list[Item], which: Literal["first", "last"] = "last") -> Number | None:
    """The number among the items that is the answer; None where it is an expression, a list, or missing.

    Items that stand aside count only where there are no others.
    """
    chosen = [item for item in items if not item.aside] or items
    return (chosen[0] if which == "first" else chosen[-1]).number if chosen else None
