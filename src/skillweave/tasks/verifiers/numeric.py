"""The verifier ``numeric``: compare the number that an answer gives exactly."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from typing import Literal

from pydantic import Field

from skillweave.tasks.verifiers.exact_numbers import Decimal
from skillweave.tasks.verifiers.formula import calculates, formula, long_decimal, same_formula
from skillweave.tasks.verifiers.items import pick, read_items
from skillweave.tasks.verifiers.number_words import is_said_in_words
from skillweave.tasks.verifiers.place import PlaceOptions, boxed, marked_part, own_words, said_part, usual_part
from skillweave.tasks.verifiers.reading import Number


class NumericOptions(PlaceOptions):
    r"""``numeric``: the number that the answer gives is the number that the gold text gives.

    ``answer_at: auto`` looks for ``\boxed{}``, then for ``<answer>``, then for a line ``#### 72``, then for "answer is"
    or "Answer:". If the text has none of these, it takes the last number.
    """

    tolerance: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="largest absolute difference that counts as equal; it is read as the decimal number that is "
        "written",
    )
    relative_tolerance: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="largest difference relative to the gold number; a number within either tolerance is right",
    )
    decimal: Decimal = Field(
        default="point", description="The decimal separator. ``comma``: ``3,5`` is three and a half, ``1.234`` is 1234."
    )
    plain: bool = Field(
        default=False,
        description="True: a fraction or a power (`84/7`, `2^10`) is not accepted, for tasks that ask to compute one",
    )


_NUMBER_LINE = re.compile(r"[^\w\n]{0,20}[0-9][^\n]{0,60}")
_SENTENCE_END = re.compile(
    r"[.!?;](?!\s{1,3}=)(?:\s+|$)|\n"
    r"|,\s+(?!(?:and|or|but|not|to|maybe|perhaps|possibly|(?:[a-z]{3,9}\s)?(?:hundred|thousand))\b)(?=[A-Za-z])|\s(?=(?:because|since|as|which|where|after|for)\b)"
)
_GAP = re.compile(r"[\s.,;:!*_)]*+")
_RESTATED = re.compile(
    r"(?:(?P<said>i\.?\s?e\b\.?|(?:that|which)\s+(?:is|equals|makes)\b|giving\b|making\b|in\s+(?:digits|figures|numerals|numbers)\b|\#{4})"
    r"|(?P<so>so\b))?[\s,:=*_$]{0,5}"
    r"(?P<number>[-\N{MINUS SIGN}]?[$€£]?[0-9][0-9.,/]{0,40}%?(?P<unit>\s?(?!(?:more|less|fewer)\b)[A-Za-z]+)?)"
    r"[*_$)]{0,4}(?=[.!?;](?:\s|$)|,\s(?!\s*[0-9])|\s*(?:\n|$))",
    re.IGNORECASE,
)
"""A clause that is one number, perhaps with a unit and with words before it: ``which is 12 eggs``."""
_REASONED = re.compile(
    r"\A[^\w\n]{0,5}[0-9][^\n;.!?=]{0,40}?(?=,?\s(?:because|since)\s(?![0-9]{4}\b)"
    r"(?![^\n]{0,400}(?:=|\b(?:so|thus|therefore|hence)\b))(?:[^\n.!?]|\.[0-9])*[.!?]?\s*\Z)"
)
"""A number that begins a text of which all the rest is its reason, from which no number is taken."""
_SPACED_MINUS = re.compile(r"\A\s*[-\N{MINUS SIGN}]\s+(?=[0-9.$\\])")
_SAID_LENGTH = 2000
_SECONDS = 2.0
"""Limit of processor time for the comparison with an irrational constant."""
_LEFT_TO_DO = re.compile(r"[0-9]\s*(?:/|\^|\*\*|÷)\s*[0-9({]|\\[dtc]?frac|[⁰¹²³⁴⁵⁶⁷⁸⁹½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")


def find_number(text: str, options: NumericOptions) -> Number | None:
    """Return the number that a text gives as its answer, or None. Takes time linear in its length; never raises."""
    part, which, strict = answer_part(text, options)
    if part is None:
        return None
    if re.fullmatch(r"\s*[0-9]+\s?!\s*", part) and "\\boxed" in text:
        return None  # a factorial: nobody cries out in a box
    if strict:  # a marked answer has no bullet before it
        part = _SPACED_MINUS.sub("-", part)
    return pick(read_items(part, options.decimal, strict=strict), which)


def answer_part(text: str, options: NumericOptions) -> tuple[str | None, Literal["first", "last"], bool]:
    """Return the part of a text to read, which of its numbers counts, and whether two numbers in it are a list."""
    if options.marked:
        part = marked_part(text, options)
        return (None if part is None else _sentence(part, options)), "last", False
    if options.answer_at == "boxed":
        return boxed(text), "last", True
    if options.answer_at in ("first", "last"):
        return text, "first" if options.answer_at == "first" else "last", False
    if options.answer_at == "whole":
        return (text if _is_whole(text) else None), "last", True
    text = own_words(text)
    marked, part = usual_part(text, _holds_number)
    if marked:
        return part, "last", True
    said = said_part(text)
    sentence = "" if said is None else _sentence(said[:_SAID_LENGTH], options)
    if sentence != "":
        return sentence, "last", False
    reasoned = _REASONED.match(text)
    return (reasoned[0] if reasoned else text), "last", False


def _holds_number(line: str, last: bool) -> bool:
    """Whether a line behind ``####`` is an answer and no heading; in words it is one only at the end of the text."""
    return _NUMBER_LINE.fullmatch(line) is not None or (last and is_said_in_words(line))


def _sentence(text: str, options: NumericOptions) -> str | None:
    """Return the first sentence or clause that has a number (or something of that form); "" if there is none.

    None: it begins with a number in words. That is the answer, whatever numerals follow: ``six. Each of 2 has 3``. But
    the same said in digits right behind it is read: ``six, i.e. 6``.
    """
    at, begins = 0, True
    for end in [*(match.span() for match in _SENTENCE_END.finditer(text)), (len(text), len(text))]:
        clause = text[at : end[0]]
        if items := read_items(clause, options.decimal):
            unread = begins and pick(items) is None  # a comparison with a number, or a calculation
            return (_restated(text, end[0], compared=True) if unread else None) or clause
        if begins and is_said_in_words(clause):
            return _restated(text, end[0])
        begins = begins and not clause.strip()
        at = end[1]
    return ""


def _restated(text: str, at: int, *, compared: bool = False) -> str | None:
    """Return the number that stands behind the clause that ends at ``at`` and says the same in digits; None without.

    ``compared``: it may also be what a comparison or a calculation comes to: ``one less than 5, so 4``.
    """
    gap = _GAP.match(text, at)
    found = None if gap is None else _RESTATED.match(text, gap.end())
    if gap is None or found is None or (found["so"] and not compared):
        return None
    behind = text[found.end() :].partition("\n")[0]
    on_its_own_line = "\n" in gap[0] and not found["unit"] and not behind.strip(" .")
    return found["number"] if found["said"] or found["so"] or on_its_own_line else None


def _is_whole(text: str) -> bool:
    """Whether a text is a number, optionally with a unit."""
    return re.fullmatch(r"\s*[^\w\s]{0,3}\s*[0-9][^\n]{0,60}", text) is not None and len(text.split()) <= 5


def same_number(found: Number, wanted: Number, options: NumericOptions) -> bool:
    """Whether two numbers are equal within the tolerances.

    ``50%`` equals both 50 and 0.5 (but 50 never equals 0.5), and ``2/3 ≈ 0.67`` both 2/3 and 0.67.
    """
    pairs = [
        (one, other)
        for one, other in itertools.product((found.value, found.rounded), (wanted.value, wanted.rounded))
        if one is not None and other is not None
    ]
    if found.percent != wanted.percent:
        pairs.append((_share(found), _share(wanted)))
    return any(_within(one, other, options) for one, other in pairs)


def _share(number: Number) -> Fraction:
    return number.value / 100 if number.percent else number.value


def _within(found: Fraction, wanted: Fraction, options: NumericOptions) -> bool:
    if found == wanted:
        return True
    # A tolerance means the decimal number that is written: 0.1, not 0.1000000000000000055.
    absolute, relative = Fraction(repr(options.tolerance)), Fraction(repr(options.relative_tolerance))
    return abs(found - wanted) <= max(absolute, relative * abs(wanted))


def numeric(answer: str, gold: str, options: NumericOptions) -> float:
    """Return 1 if the numbers of both texts are equal within the tolerances; else, or without a number, 0."""
    found, wanted = find_number(answer, options), gold_number(gold, options)
    if found is None and wanted is not None and not options.plain:
        return float(_is_constant(answer, gold, options))
    if found is None or wanted is None or not same_number(found, wanted, options):
        return 0.0
    return float(not options.plain or worked_out(answer, options))


def _is_constant(answer: str, gold: str, options: NumericOptions) -> bool:
    r"""Whether the answer is a root or a constant (``2\pi``, ``\sqrt{3}``) that the gold decimal is rounded from."""
    decimal = long_decimal(gold, options.decimal)
    part = None if decimal is None else formula(answer, options)
    if part is None or not calculates(part):
        return False
    return same_formula(part, gold, (options.tolerance, options.relative_tolerance), _SECONDS, decimal=decimal)


def worked_out(answer: str, options: NumericOptions) -> bool:
    """Whether the answer is written in digits, not as a fraction or a power."""
    return _LEFT_TO_DO.search(answer_part(answer, options)[0] or "") is None


def gold_number(gold: str, options: NumericOptions) -> Number | None:
    """Return the number of a gold text. It needs no marker even if answers do, and may always have a decimal point."""
    number = find_number(gold, options)
    if number is None and (options.marked or options.answer_at != "auto"):
        number = find_number(gold, NumericOptions(decimal=options.decimal))
    if number is None and options.decimal == "comma":
        number = find_number(gold, NumericOptions())
    return number


def gold_problem(gold: str, options: NumericOptions | None = None) -> str | None:
    """Return why no answer could match ``gold``, or None."""
    options = options or NumericOptions()
    if gold_number(gold, options) is not None:
        return None
    if read_items(gold, options.decimal):
        return (
            f"verifier 'numeric' cannot read the answer {gold[:60]!r} as one number: it is a sum, a range, a list, "
            "a time, a date, or its separators are ambiguous (a decimal comma needs decimal: comma). "
            "Write one number, such as 1234.5, 3/4 or 1.5e3"
        )
    return f"verifier 'numeric' found no number in the answer {gold[:60]!r}"
