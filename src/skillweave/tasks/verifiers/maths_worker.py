"""The process in which Math-Verify reads and compares mathematics; run as a script, it imports nothing of SkillWeave.

One JSON object a line: in ``{"answer", "gold", "tolerance", "relative_tolerance", "seconds"}``, out ``{"same"}``.
sympy works out what it is given, however long that takes and however much memory it needs. So the process has a limit
of memory, and a limit of processor time for each line: beyond either it ends, and whoever asked starts another.
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
# Math-Verify rounds decimals to six places, whatever their size; what it calls equal must be so relatively too.
_SHARE = 2e-6


def read(text: str) -> list[Any]:
    """What Math-Verify makes of a piece of mathematics, the reading that it likes best first."""
    configs = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    read = parse(rf"$\boxed{{{text}}}$", configs, fallback_mode="no_fallback", parsing_timeout=None)
    return [value for value in read if not isinstance(value, str)]


def same(answer: str, gold: str, tolerance: float, relative_tolerance: float) -> bool:
    """Whether two pieces of mathematics are the same."""
    found, wanted = read(answer), read(gold)
    for one in found:
        for other in wanted:
            values = number_of(one), number_of(other)
            if None not in values:
                difference, size = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]))
                if difference <= max(tolerance, relative_tolerance * abs(values[1])):
                    return True
                if difference > _SHARE * size:
                    continue
            if verify(other, one, timeout_seconds=None):
                return True
    return False


def number_of(value: Any) -> Any:
    """The value to 30 digits where it is a constant, else None."""
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
    same(r"\frac{1}{2}", "0.5", 0.0, 0.0)  # builds the parser's tables, which takes a while
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the parser complains there of every text that it cannot read
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, asked.pop("seconds"))  # its signal ends the process
        try:
            answer = same(**asked)
        except (Exception, RecursionError, MemoryError):
            answer = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"same": answer}), flush=True)


if __name__ == "__main__":
    main()
