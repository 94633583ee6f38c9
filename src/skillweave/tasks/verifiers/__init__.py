"""Verifiers: pure functions from a model's answer and the gold answer to a score in [0, 1].

A verifier is called as ``verifier(answer, gold, options) -> float``. It never raises on a model's text: an answer that
cannot be read scores 0. Mistakes in the task itself (options, gold answers) are found when the task is read, by
:func:`options_for` and :func:`gold_problem`. Each verifier has its own file, and :mod:`registry` lists them all.
"""

from skillweave.tasks.verifiers.code import CodeOptions, cases_problem, code, extract_code
from skillweave.tasks.verifiers.json_value import JsonOptions, json_equal, same_json
from skillweave.tasks.verifiers.maths import MathOptions
from skillweave.tasks.verifiers.numeric import NumericOptions, find_number
from skillweave.tasks.verifiers.own import OwnOptions
from skillweave.tasks.verifiers.registry import (
    VERIFIERS,
    MixOptions,
    MixPart,
    Thoughts,
    VerifierName,
    code_options,
    gold_problem,
    options_for,
    own_digests,
    verify,
)
from skillweave.tasks.verifiers.text import ExactOptions, RegexOptions, exact, regex_found

__all__ = [
    "VERIFIERS",
    "CodeOptions",
    "ExactOptions",
    "JsonOptions",
    "MathOptions",
    "MixOptions",
    "MixPart",
    "NumericOptions",
    "OwnOptions",
    "RegexOptions",
    "Thoughts",
    "VerifierName",
    "cases_problem",
    "code",
    "code_options",
    "exact",
    "extract_code",
    "find_number",
    "gold_problem",
    "json_equal",
    "options_for",
    "own_digests",
    "regex_found",
    "same_json",
    "verify",
]
