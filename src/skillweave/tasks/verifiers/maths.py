r"""The verifier ``math``: Math-Verify compares mathematics; plain numbers are compared as in ``numeric``."""

from __future__ import annotations

import re

from pydantic import Field

from skillweave.tasks.verifiers import numeric
from skillweave.tasks.verifiers.formula import calculates, formula, long_decimal, same_formula
from skillweave.tasks.verifiers.numeric import NumericOptions, find_number, gold_number, same_number, worked_out


class MathOptions(NumericOptions):
    r"""``math``: the answer equals the gold mathematics, which is a number, expression, set, interval or matrix.

    ``answer_at: auto`` looks in the same places as ``numeric``, and then for the last ``$...$``, ``\(...\)`` or
    ``\[...\]``.
    """

    seconds: float = Field(
        default=2.0,
        gt=0,
        le=60,
        allow_inf_nan=False,
        description="limit of processor time for one comparison; a longer one scores 0",
    )


def maths(answer: str, gold: str, options: MathOptions) -> float:
    """Return 1 if answer and gold are the same mathematics, else 0.

    If both are numbers, they are compared as in ``numeric``. If only the gold is a number, the answer may be an
    expression (``\\sqrt{16}`` for 4), but not a plain sum or product that was not computed (``6 * 7`` for 42).
    """
    wanted, found = gold_number(gold, options), find_number(answer, options)
    part = formula(answer, options)
    if wanted is not None and found is not None and not _is_factorial(answer, part):
        return float(same_number(found, wanted, options) and (not options.plain or worked_out(answer, options)))
    if part is None or (wanted is not None and (options.plain or not calculates(part))):
        return 0.0
    decimal = None if wanted is None else long_decimal(gold, options.decimal)
    tolerances = (options.tolerance, options.relative_tolerance)
    return float(same_formula(part, gold_formula(gold), tolerances, options.seconds, decimal=decimal))


def _is_factorial(text: str, part: str | None) -> bool:
    """Whether a formula is a factorial. Without LaTeX around it, the mark is taken as the end of an exclamation."""
    return part is not None and re.fullmatch(r"[0-9]{1,3}!", part) is not None and re.search(r"[\\$]", text) is not None


def gold_formula(gold: str) -> str:
    """Return the mathematics of a gold text."""
    return formula(gold, MathOptions()) or gold


def gold_problem(gold: str, options: MathOptions | None = None) -> str | None:
    """Return why no answer could match ``gold``, or None. If it is not a number, it must be a readable formula."""
    options = options or MathOptions()
    if gold_number(gold, options) is not None:
        return None
    part = gold_formula(gold)
    if re.search(r"[0-9]", part) and not re.search(r"[A-Za-z\\√π∛(\[{,]", part):  # a time, a date, a sum
        return numeric.gold_problem(gold, options)
    if not same_formula(part, part, (0.0, 0.0), options.seconds):
        return f"verifier 'math' cannot read the answer {gold[:60]!r}: write a number or a LaTeX formula"
    return None
