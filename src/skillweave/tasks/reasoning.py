"""Generators of reasoning-gym as tasks, scored by their own ``score_answer``.

Some of its scorers pass the model's text to ``eval``, or to sympy's parser, which also evaluates it. A model that is
trained against such a scorer might learn to run code in this process. So a scorer that reads plain lists or arithmetic
is used only if all characters of the answer are allowed, and generators whose scorer reads any expression are refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from skillweave.base.thoughts import strip_thoughts
from skillweave.errors import UserError, nearest
from skillweave.tasks.row_forms import with_system
from skillweave.tasks.spec import ReasoningGymSpec
from skillweave.tasks.stream import Example, draw, seed_of
from skillweave.tasks.task import Entry, Scorer, Task

# Without parentheses, dots and operators a text cannot call a function, read an attribute or compute a large value.
_LIST = re.compile(r"[\w\s,'\"\[\]-]{0,2000}", re.ASCII)
# Digits and the four operations, without "**", whose result may fill the memory.
_ARITHMETIC = re.compile(r"(?:[\d\s+\-/().]|\*(?!\s*\*)){0,200}", re.ASCII)
_ALLOWED = {
    "binary_matrix": _LIST,
    "n_queens": _LIST,
    "spiral_matrix": _LIST,
    "string_insertion": _LIST,
    "countdown": _ARITHMETIC,
    "puzzle24": _ARITHMETIC,
}
_REFUSED = ("intermediate_integration", "polynomial_multiplication", "simple_integration")
# 1e999999999 as a fraction or an integer would be computed digit by digit. Words, and numbers in other bases
# (fe12345), do not match.
_HUGE_EXPONENT = re.compile(r"(?<![^\W_])(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9_]{5,}(?![^\W_])")

# Some generators compute all their examples at creation, so the stream is made of pieces of this size.
_PIECE = 250


def reasoning_gym_task(spec: ReasoningGymSpec) -> Task:
    """A task whose splits come from a reasoning-gym generator.

    Raises :class:`UserError` for an unknown generator or setting, for a scorer that would run the model's text, and for
    training on a generator that has no gold answers.
    """
    import reasoning_gym  # imported here: it takes seconds, and most tasks do not need it
    from reasoning_gym.factory import DATASETS

    name = spec.generator
    if name not in DATASETS:
        raise UserError(f"reasoning-gym has no generator '{name}'; {nearest(name, DATASETS)}")
    if name in _REFUSED:
        raise UserError(
            f"reasoning-gym's '{name}' scores an answer by evaluating it as Python, so a model could run code here: "
            "choose another generator, or bring the problems as a .jsonl file"
        )
    fields = {field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    for key in spec.config:
        if key not in fields:
            hint = "set it beside 'generator'" if key in ("seed", "size") else nearest(key, fields)
            raise UserError(f"reasoning-gym's '{name}' has no setting config.{key}; {hint}")

    def piece(number: int) -> Any:
        try:
            return reasoning_gym.create_dataset(
                name, **spec.config, seed=seed_of(spec.seed, number * _PIECE), size=_PIECE
            )
        except (AssertionError, ValueError, TypeError) as error:
            raise UserError(f"reasoning-gym's '{name}' refuses these settings: {error or spec.config}") from error

    pieces: dict[int, Any] = {}

    def example(index: int) -> Example:
        number, offset = divmod(index, _PIECE)
        if number not in pieces:
            pieces[number] = piece(number)
        row = pieces[number][offset]
        prompt = spec.instruction.replace("{question}", row["question"])
        return with_system(prompt, spec.system, name), row["answer"], row

    if example(0)[1] is None and (spec.splits.calibration or spec.splits.train != 0):
        raise UserError(
            f"reasoning-gym's '{name}' gives no gold answers, only a verifier: nothing to train or calibrate on. "
            "To score answers only, set splits: {train: 0, calibration: 0, test: 200}"
        )
    splits, repeats = draw(example, spec.splits, name)
    return Task(name, splits, _scorer(name, pieces[0].score_answer, spec), spec, repeats)


def _scorer(name: str, score_answer: Callable[..., float], spec: ReasoningGymSpec) -> Scorer:
    allowed = _ALLOWED.get(name)

    def score(answer: str, entry: Entry) -> float:
        answer = (strip_thoughts(answer) if spec.thoughts == "strip" else answer).strip()
        # The generator's own answer is harmless, whatever it looks like: 1e12345 may be a hexadecimal number.
        is_gold = isinstance(entry.answer, str) and answer.casefold() == entry.answer.strip().casefold()
        if not is_gold and ((allowed and not allowed.fullmatch(answer)) or _HUGE_EXPONENT.search(answer)):
            return 0.0
        try:
            value = float(score_answer(answer, entry.metadata))
        except Exception:
            # The scorers come from another library, and many fail on text that does not have the form they expect.
            return 0.0
        value = 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0)
        return float(value == 1.0) if spec.strict else value

    return score
