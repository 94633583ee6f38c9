r"""The verifier ``math``: Math-Verify compares mathematics; plain numbers are compared as in ``numeric``."""

from __future__ import annotations

import re

from pydantic import Field

from skillweave.tasks.verifiers import numeric
from skillweave.tasks.verifiers.maths_process import same_mathematics
from skillweave.tasks.verifiers.numeric import NumericOptions, find_number, gold_number, same_number, worked_out
from skillweave.tasks.verifiers.place import (
    TextSpan,
    boxed,
    first_line,
    marked_part,
    one_of,
    own_words,
    said_part,
    usual_part,
)


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


_LENGTH = 1000
_FORMULA = re.compile(r"\$\$(.{1,1000}?)\$\$|\$([^$\n]{1,1000})\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL)
_FORMULA_LINE = re.compile(r"[^\w\n]{0,20}(?:[0-9][^\n]{0,60}|[^\n]{0,200}[\\$^][^\n]{0,200})")
_SENTENCE = re.compile(r"(.*?)(?:[.!?](?:\s|$)|\n|$)", re.DOTALL)
_CALCULATES = re.compile(r"\\[A-Za-z]|[√π∛]|\b(?:sqrt|pi)\b|[0-9]!")
_UNFINISHED = re.compile(r"[0-9})]\s*(?:[-+*×·÷]|\\times|\\cdot|\\div)\s*[0-9({\\]")
# No answer needs these, and sympy takes long for them: towers of powers, factorials of thousands, long numerals.
_HUGE = re.compile(
    r"[0-9]\s*\^\s*\{?\s*[0-9]+\s*(?:\^|\\\^)|\^\s*\{?\s*-?[0-9]{5,}|[0-9]{4,}\s*\}?\s*!|[0-9]{300,}|\*\*"
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
    if not part or len(part) > _LENGTH or _HUGE.search(part):
        return 0.0
    if wanted is not None and (options.plain or _UNFINISHED.search(part) or not _CALCULATES.search(part)):
        return 0.0
    tolerances = (options.tolerance, options.relative_tolerance)
    return float(same_mathematics(_latex(part), _latex(gold_formula(gold)), tolerances, options.seconds))


def _is_factorial(text: str, part: str | None) -> bool:
    """Whether a formula is a factorial. Without LaTeX around it, the mark is taken as the end of an exclamation."""
    return part is not None and re.fullmatch(r"[0-9]{1,3}!", part) is not None and re.search(r"[\\$]", text) is not None


def _latex(part: str) -> str:
    """Return a formula with LaTeX commands in place of special characters."""
    part = re.sub(r"√\s*(\w+|\([^()]*\))", r"\\sqrt{\1}", part)
    return part.replace("π", r"\pi ").replace("∞", r"\infty ").replace("≤", r"\le ").replace("≥", r"\ge ")


def formula(text: str, options: MathOptions) -> str | None:
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
        marked, part = usual_part(text, _FORMULA_LINE)
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
    """Return every formula in LaTeX delimiters, without those that are only an exponent or an index: ``cm$^2$``."""
    found = [TextSpan(m.start(), m.end(), next(filter(None, m.groups()))) for m in _FORMULA.finditer(text)]
    return [one for one in found if not one.content.lstrip().startswith(("^", "_"))]


def _inside(text: str) -> str:
    """Return the formula of a text without the LaTeX delimiters around it; the last one if there are several."""
    parts = _formulas(text)
    return (one_of(parts, text) or "") if parts else text.strip().rstrip(".").strip("*` ")


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
    part = _latex(part)
    if len(part) > _LENGTH or _HUGE.search(part) or not same_mathematics(part, part, (0.0, 0.0), options.seconds):
        return f"verifier 'math' cannot read the answer {gold[:60]!r}: write a number or a LaTeX formula"
    return None
