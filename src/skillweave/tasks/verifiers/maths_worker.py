"""The process in which Math-Verify parses and compares formulas. It is run as a script and imports no SkillWeave code.

It reads and writes one JSON object per line: ``{"answer", "gold", "tolerance", "relative_tolerance", "places",
"seconds"}`` in, ``{"same"}`` out. sympy evaluates whatever it is given, even if that takes very long or needs a lot of
memory. So the process has a memory limit, and a limit of processor time per line. If it exceeds one of them, it ends,
and the caller starts another process.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic

MEMORY = 2 * 2**30
# Math-Verify rounds decimals to six places, whatever their size, so the relative difference is checked too.
_SHARE = 2e-6


def read(text: str) -> list[Any]:
    """Return Math-Verify's readings of a formula, the preferred one first."""
    configs = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    read = parse(rf"$\boxed{{{text}}}$", configs, fallback_mode="no_fallback", parsing_timeout=None)
    return [value for value in read if not isinstance(value, str)]


def same(answer: str, gold: str, tolerance: float, relative_tolerance: float, places: int | None) -> bool:
    """Return whether two formulas are the same."""
    for one in read(answer):
        for other in read(gold):
            values = number_of(one), number_of(other)
            if None not in values:
                difference, size = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]))
                if difference <= max(tolerance, relative_tolerance * abs(values[1])):
                    return True
                if places is not None and is_rounding(one, *values, places):
                    return True
                if difference > _SHARE * size:
                    continue
            if verify(other, one, timeout_seconds=None):
                return True
    return False


def is_rounding(answer: Any, value: Any, gold: Any, places: int) -> bool:
    """Return whether a decimal gold is an irrational answer's rounding to so many places, or its digits cut off."""
    beyond = (abs(value) - abs(gold)) * 10**places  # in units of the last place
    return not answer.doit().is_rational and value * gold > 0 and -0.5 <= beyond < 1


def number_of(value: Any) -> Any:
    """Return the value to 30 digits if it is a constant, else None."""
    try:
        if not isinstance(value, Basic) or value.free_symbols or not value.is_number:
            return None
        number = value.doit().evalf(30)
        return number if number.is_finite else None
    except Exception:
        return None


def main() -> None:
    """Answer line by line until the input ends."""
    logging.disable(logging.CRITICAL)
    same(r"\frac{1}{2}", "0.5", 0.0, 0.0, None)  # builds the tables of the parser, which takes a while
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the parser reports there every text that it cannot read
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, question.pop("seconds"))  # its signal ends the process
        try:
            answer = same(**question)
        except (Exception, RecursionError, MemoryError):
            answer = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"same": answer}), flush=True)


if __name__ == "__main__":
    main()
