"""Find the formula that a text gives as its answer, and ask Math-Verify whether it is that of another text."""

from __future__ import annotations

import re

from skillweave.tasks.verifiers.exact_numbers import Decimal
from skillweave.tasks.verifiers.maths_process import same_mathematics
from skillweave.tasks.verifiers.place import (
    PlaceOptions,
    TextSpan,
    boxed,
    first_line,
    has_denial,
    marked_part,
    one_of,
    own_words,
    said_part,
    usual_part,
)

_LENGTH = 1000
_FORMULA = re.compile(r"\$\$(.{1,1000}?)\$\$|\$([^$\n]{1,1000})\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL)
_FORMULA_LINE = re.compile(r"[^\w\n]{0,20}(?:[0-9][^\n]{0,60}|[^\n]{0,200}[\\$^π√][^\n]{0,200}|[0-9]*(?:pi|e)\s*$)")
_SENTENCE = re.compile(r"(.*?)(?:[.!?](?:\s|$)|\n|$)", re.DOTALL)
_CALCULATES = re.compile(r"\\[A-Za-z]|[√π∛]|\bsqrt\b|(?<![A-Za-z])(?:pi|e)(?![A-Za-z])|[0-9]!")
_UNFINISHED = re.compile(r"[0-9})]\s*(?:[-+*×·÷]|\\times|\\cdot|\\div)\s*[0-9({\\]")
# No answer needs these, and sympy takes long for them: towers of powers, factorials of thousands, long numerals.
_HUGE = re.compile(
    r"[0-9]\s*\^\s*\{?\s*[0-9]+\s*(?:\^|\\\^)|\^\s*\{?\s*-?[0-9]{5,}|[0-9]{4,}\s*\}?\s*!|[0-9]{300,}|\*\*"
)
_PLACES = {"point": re.compile(r"-?[0-9]*\.([0-9]+)"), "comma": re.compile(r"-?[0-9]*,([0-9]+)")}
_DIGITS = 3
"""Digits that a decimal has at least if an irrational number may be what it was rounded from."""


def formula(text: str, options: PlaceOptions) -> str | None:
    """Return the mathematics that a text gives as its answer, without the markers around it; None if there is none."""
    if options.marked:
        part = marked_part(text, options)
        return None if part is None else _inside(part)
    if options.answer_at == "boxed":
        return boxed(text)
    if options.answer_at == "whole":
        return _inside(text)
    if options.answer_at == "auto":
        text = own_words(text)
        marked, part = usual_part(text, lambda line, _: _FORMULA_LINE.fullmatch(line))
        if marked:
            return None if part is None else _inside(part)
        said = said_part(text)
        if said is not None and (line := first_line(said)):
            match = _SENTENCE.match(line)
            return _inside(match[1] if match else line)
    parts = _formulas(text)
    if parts:
        return one_of(parts, text, "first" if options.answer_at == "first" else "last")
    lines = text.strip().splitlines()
    return (lines[0] if options.answer_at == "first" else lines[-1]).strip() if lines else None


def _formulas(text: str) -> list[TextSpan]:
    """Return every formula in LaTeX delimiters that the text does not deny.

    Those that are only an exponent or an index are left out: ``cm$^2$``.
    """
    found = [TextSpan(m.start(), m.end(), next(filter(None, m.groups()))) for m in _FORMULA.finditer(text)]
    return [
        one
        for one in found
        if not one.content.lstrip().startswith(("^", "_")) and not has_denial(text, one.start, one.end)
    ]


def _inside(text: str) -> str:
    """Return the formula of a text without the LaTeX delimiters around it; the last one if there are several."""
    parts = _formulas(text)
    return (one_of(parts, text) or "") if parts else text.strip().rstrip(".").strip("*` ")


def same_formula(
    one: str, other: str, tolerances: tuple[float, float], seconds: float, *, decimal: str | None = None
) -> bool:
    """Return whether two formulas are the same mathematics; False for one that is empty, long or huge.

    ``decimal``: the formula ``other`` as :func:`long_decimal` reads it. An irrational constant also equals a decimal
    that is its rounding, or its digits cut off. ``tolerances`` and ``seconds`` are those of :func:`same_mathematics`.
    """
    if not all(part and len(part) <= _LENGTH and not _HUGE.search(part) for part in (one, other)):
        return False
    places = None if decimal is None else len(decimal.partition(".")[2])
    return same_mathematics(_latex(one), decimal or _latex(other), tolerances, seconds, places)


def calculates(part: str) -> bool:
    """Whether a formula has a root, a constant or a function, and is no plain sum or product that is left to do."""
    return _CALCULATES.search(part) is not None and _UNFINISHED.search(part) is None


def long_decimal(gold: str, decimal: Decimal) -> str | None:
    """Return a gold text that is a decimal of at least two places and three digits, with a decimal point; else None."""
    text = _inside(gold)
    match = _PLACES[decimal].fullmatch(text) or _PLACES["point"].fullmatch(text)
    if match is None or len(match[1]) < 2 or len(re.sub(r"[^0-9]", "", text).lstrip("0")) < _DIGITS:
        return None
    return text.replace(",", ".")


def _latex(part: str) -> str:
    """Return a formula with LaTeX commands in place of special characters and of the words pi and sqrt."""
    part = re.sub(r"√\s*(\w+|\([^()]*\))", r"\\sqrt{\1}", part)
    part = re.sub(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", part)
    part = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", part)
    return part.replace("π", r"\pi ").replace("∞", r"\infty ").replace("≤", r"\le ").replace("≥", r"\ge ")
