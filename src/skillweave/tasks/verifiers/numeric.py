"""The verifier ``numeric``: the number that an answer gives."""

from __future__ import annotations

import re
from decimal import Decimal

from pydantic import Field

from skillweave.config import Config


class NumericOptions(Config):
    """``numeric``: the last number in the answer is the last number in the gold text."""

    tolerance: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Greatest absolute difference that still counts as equal; 0 compares digits exactly (``1.50`` is ``1.5``)."""


# A sign counts only where nothing is subtracted: "10-3" ends in 3, "is -3" in -3. Thousands may be set off by commas.
_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
)


def last_number(text: str) -> Decimal | None:
    """The last finite number written in ``text`` (``nan`` and ``inf`` are words here), or None."""
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except ArithmeticError:  # an exponent beyond what Decimal can hold
        return None


def numeric(answer: str, gold: str, options: NumericOptions) -> float:
    """1 where the last numbers of both texts differ by at most ``tolerance``; without a number on either side 0."""
    found, wanted = last_number(answer), last_number(gold)
    if found is None or wanted is None:
        return 0.0
    if found == wanted:
        return 1.0
    return float(options.tolerance > 0 and abs(float(found) - float(wanted)) <= options.tolerance)


def gold_problem(gold: str) -> str | None:
    """Why no answer could match ``gold``, or None."""
    return None if last_number(gold) is not None else f"verifier 'numeric' found no number in the answer {gold[:60]!r}"
