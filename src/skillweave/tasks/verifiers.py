"""Verifiers: pure functions from a model's answer and the gold answer to a score in [0, 1].

``verifier(answer, gold, options) -> float``. A verifier never raises on a model's text: what cannot be read scores
0. Mistakes of the person who wrote the task (options, gold answers) are found when the task is read, by
:func:`options_for` and :func:`gold_problem`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import regex
from pydantic import Field, field_validator

from skillweave.config import Config, read_config
from skillweave.tools.sandbox import Limits, run

VerifierName = Literal["exact", "numeric", "json", "regex", "code"]


class ExactOptions(Config):
    """``exact``: the whole answer is the gold text."""

    strip: bool = True
    casefold: bool = False


class NumericOptions(Config):
    """``numeric``: the last number in the answer is the last number in the gold text."""

    tolerance: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Greatest absolute difference that still counts as equal; 0 compares digits exactly (``1.50`` is ``1.5``)."""


class JsonOptions(Config):
    """``json``: the first JSON object or array in the answer equals the gold one. There is nothing to set."""


class RegexOptions(Config):
    """``regex``: the pattern is found in the answer."""

    pattern: str
    """``{answer}`` in it stands for the gold text, taken literally: ``(?i)\\b{answer}\\b``."""
    seconds: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Processor time of this process; a search that takes longer (a pattern that backtracks without end) scores 0."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern.replace("{answer}", "x"))
        except regex.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return pattern


class CodeOptions(Config):
    """``code``: the share of the row's cases that the answer's code passes in the sandbox."""

    seconds: float = Field(2.0, gt=0, allow_inf_nan=False)
    memory: int = Field(64 * 2**20, gt=0)


def exact(answer: str, gold: str, options: ExactOptions) -> float:
    """1 where the texts are equal, after ``strip`` and ``casefold`` where asked for."""
    for change in (str.strip if options.strip else None, str.casefold if options.casefold else None):
        if change is not None:
            answer, gold = change(answer), change(gold)
    return float(answer == gold)


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


_DECODER = json.JSONDecoder()
_TRIES = 200  # starts tried in one text: bounds the work on an answer made of nothing but brackets
_MISSING = object()


def first_json(text: str, starts: str = '{["-0123456789tfn') -> Any:
    """The first JSON value in ``text`` that begins with one of ``starts``; a private marker where there is none."""
    places = (index for index, character in enumerate(text) if character in starts)
    for index, _ in zip(places, range(_TRIES), strict=False):
        with contextlib.suppress(ValueError, RecursionError):
            return _DECODER.raw_decode(text, index)[0]
    return _MISSING


def same_json(a: Any, b: Any) -> bool:
    """Structural equality: key order is free, 1 equals 1.0, tuples are arrays; true is not 1, NaN equals nothing.

    Floats within 1e-9 of each other (relative) are equal, so that 0.1 + 0.2 is 0.3; whole numbers compare exactly.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        try:
            return math.isfinite(a) and math.isfinite(b) and math.isclose(a, b, rel_tol=1e-9)
        except OverflowError:  # an integer that no float can hold
            return False
    return type(a) is type(b) and a == b


def json_equal(answer: str, gold: str, options: JsonOptions) -> float:
    """1 where the answer's first JSON value equals the gold one, whatever prose or fence stands around it.

    Where the gold value is an object or an array only such values are looked for (prose holds numbers too).
    """
    wanted = first_json(gold)
    found = first_json(answer, "{[") if isinstance(wanted, dict | list) else first_json(answer)
    try:
        return float(found is not _MISSING and same_json(found, wanted))
    except RecursionError:
        return 0.0


def regex_found(answer: str, gold: str, options: RegexOptions) -> float:
    """1 where the pattern, ``{answer}`` replaced by the escaped gold text, is found within the time limit."""
    pattern = options.pattern.replace("{answer}", regex.escape(gold.strip()))
    try:
        return float(regex.search(pattern, answer, timeout=options.seconds) is not None)
    except (TimeoutError, regex.error):
        return 0.0


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


_VERIFIERS: dict[str, tuple[type[Config], Callable[[str, Any, Any], float]]] = {
    "exact": (ExactOptions, exact),
    "numeric": (NumericOptions, numeric),
    "json": (JsonOptions, json_equal),
    "regex": (RegexOptions, regex_found),
    "code": (CodeOptions, code),
}


def options_for(name: VerifierName, settings: dict[str, Any]) -> Config:
    """The checked options of a verifier; an unknown or wrong one is a :class:`UserError` that names it."""
    return read_config(_VERIFIERS[name][0], settings)


def verify(name: VerifierName, answer: str, gold: Any, options: Config) -> float:
    """The score in [0, 1] that verifier ``name`` gives ``answer``; ``gold`` is a text, for ``code`` the cases."""
    return _VERIFIERS[name][1](answer, gold, options)


def gold_problem(name: VerifierName, gold: Any) -> str | None:
    """Why no answer could ever match ``gold``, or None: such a row is a mistake in the task, not in the model."""
    if name == "code":
        return _cases_problem(gold)
    if not isinstance(gold, str):
        return f"the answer must be a text, found {type(gold).__name__}"
    if name == "numeric" and last_number(gold) is None:
        return f"verifier 'numeric' found no number in the answer {gold[:60]!r}"
    if name == "json" and first_json(gold) is _MISSING:
        return f"verifier 'json' found no JSON value in the answer {gold[:60]!r}"
    return None


def _cases_problem(cases: Any) -> str | None:
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
