"""Exact values of digits and powers, within limits that no answer needs to exceed. Pure functions."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

Decimal = Literal["point", "comma"]

_DIGITS_AT_MOST = 1000
_POWER_BITS_AT_MOST = 20_000
_INDIAN = "[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}"
"""Groups as India writes them: 10,00,000 is ten lakh, a million."""
_POINT, _COMMA = (
    re.compile(
        rf"(?:[0-9]+|{more}[0-9]{{1,3}}(?:(?:{group}[0-9]{{3}})+|(?:'[0-9]{{3}})+|(?:_[0-9]{{3}})+))?(?:{point}[0-9]+)?"
    )
    for group, point, more in ((",", r"\.", f"{_INDIAN}|"), (r"\.", ",", ""))
)


def numeral(text: str, decimal: Decimal) -> Fraction | None:
    """Return the value of digits with separators (``1,234.5``); None if they are not a number (``1.2.3``)."""
    form = _POINT if decimal == "point" else _COMMA
    if len(text) > _DIGITS_AT_MOST or not form.fullmatch(text):
        return None
    group, point = (",", ".") if decimal == "point" else (".", ",")
    return Fraction(text.replace(group, "").replace("'", "").replace("_", "").replace(point, "."))


def power(base: Fraction, exponent: int) -> Fraction | None:
    """Return ``base ** exponent``; None if it is undefined, or too long to be an answer."""
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
    if bits > _POWER_BITS_AT_MOST or (base == 0 and exponent <= 0):
        return None
    return base**exponent


def times_ten_to(value: Fraction, exponent: int) -> Fraction | None:
    """Return ``value`` times ten to the ``exponent``; None if that is too long to be an answer."""
    scale = power(Fraction(10), exponent)
    return None if scale is None else value * scale
