"""Verifiers: pure functions from a model's answer and the gold answer to a score in [0, 1].

``verifier(answer, gold, options) -> float``. A verifier never raises on a model's text: what cannot be read scores
0. Mistakes of the person who wrote the task (options, gold answers) are found when the task is read, by
:func:`options_for` and :func:`gold_problem`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from skillweave.config import Config, read_config
from skillweave.tasks.verifiers import json_value, numeric
from skillweave.tasks.verifiers.code import CodeOptions, cases_problem, code, extract_code
from skillweave.tasks.verifiers.json_value import JsonOptions, first_json, json_equal, same_json
from skillweave.tasks.verifiers.numeric import NumericOptions, last_number
from skillweave.tasks.verifiers.text import ExactOptions, RegexOptions, exact, regex_found

VerifierName = Literal["exact", "numeric", "json", "regex", "code"]

VERIFIERS: dict[str, tuple[type[Config], Callable[[str, Any, Any], float]]] = {
    "exact": (ExactOptions, exact),
    "numeric": (NumericOptions, numeric.numeric),
    "json": (JsonOptions, json_equal),
    "regex": (RegexOptions, regex_found),
    "code": (CodeOptions, code),
}


def options_for(name: VerifierName, settings: dict[str, Any]) -> Config:
    """The checked options of a verifier; an unknown or wrong one is a :class:`UserError` that names it."""
    return read_config(VERIFIERS[name][0], settings)


def verify(name: VerifierName, answer: str, gold: Any, options: Config) -> float:
    """The score in [0, 1] that verifier ``name`` gives ``answer``; ``gold`` is a text, for ``code`` the cases."""
    return VERIFIERS[name][1](answer, gold, options)


def gold_problem(name: VerifierName, gold: Any) -> str | None:
    """Why no answer could ever match ``gold``, or None: such a row is a mistake in the task, not in the model."""
    if name == "code":
        return cases_problem(gold)
    if not isinstance(gold, str):
        return f"the answer must be a text, found {type(gold).__name__}"
    if name == "numeric":
        return numeric.gold_problem(gold)
    if name == "json":
        return json_value.gold_problem(gold)
    return None
