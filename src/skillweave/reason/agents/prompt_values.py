"""Values of a problem as the texts that stand in prompts: Python literals, because the programs are Python."""

from __future__ import annotations

import re
from typing import Any

from skillweave.reason.hypothesis import Evaluation, Hypothesis
from skillweave.reason.problem import ExamplePairs, Missing, Value

LONGEST_VALUE = 4_000
"""Most characters of what a program gave; a longer text is cut, and says so. Inputs and outputs are never cut."""

_PLAIN = re.compile(r"'([^\W\d_]+(?: [^\W\d_]+)*)'")
_WORDS_OF_PYTHON = {"True", "False", "None"}


def literal_text(value: Value) -> str:
    """The Python literal of a value: ``True`` and ``None``, not ``true`` and ``null``."""
    return repr(value)


def bare_text(literal: str) -> str:
    """A literal without its quotes if it is a text of plain words: letters and single spaces only.

    ``'turn left'`` becomes ``turn left``. ``'True'`` keeps its quotes, because without them it is another value.
    """
    match = _PLAIN.fullmatch(literal)
    return match[1] if match and match[1] not in _WORDS_OF_PYTHON else literal


def pair_texts(examples: ExamplePairs) -> list[dict[str, str]]:
    """The variable ``pairs`` of a template: input and output of each training pair, as literals."""
    return [{"input": literal_text(pair.input), "output": literal_text(pair.output)} for pair in examples.pairs]


def failure_texts(examples: ExamplePairs, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The variable ``failures`` of a template: the training pairs that are not solved.

    Each has its number (from 1), its input, the wanted output, and what the program gave.
    """
    triples = zip(pair_texts(examples), evaluation.outcomes, evaluation.solved, strict=True)
    return [
        {"number": number, "input": pair["input"], "wanted": pair["output"], "got": _outcome_text(outcome)}
        for number, (pair, outcome, solved) in enumerate(triples, 1)
        if not solved
    ]


def program_texts(hypotheses: list[Hypothesis]) -> list[str]:
    """The distinct programs of hypotheses, in order."""
    return list(dict.fromkeys(one.program for one in hypotheses if one.program))


def rule_texts(hypotheses: list[Hypothesis]) -> list[str]:
    """The distinct rules of hypotheses, in order."""
    return list(dict.fromkeys(one.rule for one in hypotheses if one.rule))


def _outcome_text(outcome: Value | Missing) -> str:
    text = f"error: {outcome.why}" if isinstance(outcome, Missing) else literal_text(outcome)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text):,} characters, cut)"
