"""The verifier ``code``: the share of a row's cases that an answer's program passes in the sandbox."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from skillweave.config import Config
from skillweave.tasks.verifiers.json_value import same_json
from skillweave.tools.sandbox import Limits, run


class CodeOptions(Config):
    """``code``: the share of the row's cases that the answer's code passes in the sandbox."""

    seconds: float = Field(2.0, gt=0, allow_inf_nan=False)
    memory: int = Field(64 * 2**20, gt=0)


_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def extract_code(answer: str) -> str:
    """The first fenced block of an answer (a cut-off one counts), or the whole where there is no fence."""
    block = _FENCE.search(answer)
    return block[1] if block else answer


def code(answer: str, gold: list[Any], options: CodeOptions) -> float:
    """The share of the cases that the answer's code passes; ``gold`` is the row's ``cases``.

    A case is one of: ``{"call": "solve(3)", "value": 4}`` (the value is compared out here, so that code cannot
    pass it by meddling with equality), ``{"inputs": {"n": 3}, "output": "4"}`` (what is printed, ends stripped), or
    a text such as ``"assert solve(3) == 4"`` that must run without an exception.
    """
    source = extract_code(answer)
    limits = Limits(seconds=options.seconds, memory=options.memory)
    return sum(_passes(source, case, limits) for case in gold) / len(gold)


def _passes(source: str, case: Any, limits: Limits) -> bool:
    if isinstance(case, str):
        return run(f"{source}\n\n{case}\n", limits=limits).ok
    if "call" in case:
        result = run(f"{source}\n\n{case['call']}\n", limits=limits)
        return result.ok and same_json(result.value, case["value"])
    result = run(source, case["inputs"], limits)
    return result.ok and result.output.strip() == case["output"].strip()


def cases_problem(cases: Any) -> str | None:
    """Why no program could pass ``cases``, or None."""
    if not isinstance(cases, list) or not cases:
        return "verifier 'code' needs a key 'cases': a list of at least one case"
    for number, case in enumerate(cases, 1):
        if isinstance(case, str):
            continue
        keys = set(case) if isinstance(case, dict) else set()
        called = keys == {"call", "value"} and isinstance(case["call"], str)
        printed = keys == {"inputs", "output"} and isinstance(case["inputs"], dict) and isinstance(case["output"], str)
        if not called and not printed:
            return (
                f"case {number} is neither a text like 'assert f(1) == 2' nor "
                '{"call": "f(1)", "value": 2} nor {"inputs": {"n": 1}, "output": "2"}'
            )
    return None
