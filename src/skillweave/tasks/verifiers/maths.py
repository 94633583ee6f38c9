r"""The verifier ``math``: mathematics is compared by Math-Verify, and plain numbers as ``numeric`` compares them."""

from __future__ import annotations

import re

from pydantic import Field

from skillweave.tasks.verifiers import numeric
from skillweave.tasks.verifiers.maths_process import same_mathematics
from skillweave.tasks.verifiers.numeric import NumericOptions, find_number, gold_number, same_number, worked_out
from skillweave.tasks.verifiers.place import (
    Part,
    boxed,
    first_line,
    marked_part,
    one_of,
    own_words,
    said_part,
    usual_part,
)


class MathOptions(NumericOptions):
    r"""``math``: what the answer gives equals the gold mathematics: a number, expression, set, interval or matrix.

    ``answer_at: auto`` looks where ``numeric`` does, and then for the last ``$...$``, ``\(...\)`` or ``\[...\]``.
    """

    seconds: float = Field(2.0, gt=0, le=60, allow_inf_nan=False)
    """Processor time that one comparison may take in its process; a longer one scores 0."""


_LENGTH = 1000
_FORMULA = re.compile(r"\$\$(.{1,1000}?)\$\$|\$([^$\n]{1,1000})\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL)
_FORMULA_LINE = re.compile(r"[^\w\n]{0,20}(?:[0-9][^\n]{0,60}|[^\n]{0,200}[\\$^][^\n]{0,200})")
_SENTENCE = re.compile(r"(.*?)(?:[.!?](?:\s|$)|\n|$)", re.DOTALL)
_CALCULATES = re.compile(r"\\[A-Za-z]|[√π∛]|\b(?:sqrt|pi)\b|[0-9]!")
_UNFINISHED = re.compile(r"[0-9})]\s*(?:[-+*×·÷]|\\times|\\cdot|\\div)\s*[0-9({\\]")
# What no answer needs and what takes sympy long: towers of numerals, factorials of thousands, very long numerals.
_HUGE = re.compile(
    r"[0-9]\s*\^\s*\{?\s*[0-9]+\s*(?:\^|\\\^)|\^\s*\{?\s*-?[0-9]{5,}|[0-9]{4,}\s*\}?\s*!|[0-9]{300,}|\*\*"
)


def maths(answer: str, gold: str, options: MathOptions) -> float:
    """1 where answer and gold are the same mathematics, else 0.

    A number for a gold number is judged as ``numeric`` judges it. For such a gold an expression counts too
    (``\\sqrt{16}`` for 4), but no plain sum or product that is left to do (``6 * 7`` for 42).
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
    """Whether a formula is a factorial; where nothing shows that it is a formula, the mark ends an exclamation."""
    return part is not None and re.fullmatch(r"[0-9]{1,3}!", part) is not None and re.search(r"[\\$]", text) is not None


def _latex(part: str) -> str:
    """A formula with the signs that LaTeX has commands for written as these commands."""
    part = re.sub(r"√\s*(\w+|\([^()]*\))", r"\\sqrt{\1}", part)
    return part.replace("π", r"\pi ").replace("∞", r"\infty ").replace("≤", r"\le ").replace("≥", r"\ge ")


def formula(text: str, options: MathOptions) -> str | None:
    """The mathematics that a text gives as its answer, without the marks around it; None where there is none."""
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
    parts = [Part(m.start(), m.end(), next(filter(None, m.groups()))) for m in _FORMULA.finditer(text)]
    if parts:
        return one_of(parts, text, "first" if options.answer_at == "first" else "last")
    lines = text.strip().splitlines()
    return (lines[0] if options.answer_at == "first" else lines[-1]).strip() if lines else None


def _inside(text: str) -> str:
    """A piece of text without the marks of LaTeX around its formula: the last, where it holds several."""
    parts = [Part(m.start(), m.end(), next(filter(None, m.groups()))) for m in _FORMULA.finditer(text)]
    return (one_of(parts, text) or "") if parts else text.strip().rstrip(".").strip("*` ")


def gold_formula(gold: str) -> str:
    """The mathematics of a gold text."""
    return formula(gold, MathOptions()) or gold


def gold_problem(gold: str, options: MathOptions | None = None) -> str | None:
    """Why no answer could match ``gold``, or None. A text that is no number must hold a formula that can be read."""
    options = options or MathOptions()
    if gold_number(gold, options) is not None:
        return None
    given = gold_formula(gold)
    if re.search(r"[0-9]", given) and not re.search(r"[A-Za-z\\√π∛(\[{,]", given):  # a time, a date, a sum
        return numeric.gold_problem(gold, options)
    given = _latex(given)
    if len(given) > _LENGTH or _HUGE.search(given) or not same_mathematics(given, given, (0.0, 0.0), options.seconds):
        return f"verifier 'math' cannot read the answer {gold[:60]!r}: write a number or a formula of LaTeX"
    return None
