"""Score a model on a task, with a 95% interval that says how far the number can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from skillweave.base.chat import Prompt
from skillweave.errors import UserError
from skillweave.tasks.task import Task

_Z = 1.959963984540054  # the normal distribution's 97.5% quantile


@dataclass(frozen=True)
class Score:
    """The mean score over ``n`` entries in [0, 1], its 95% interval, and what every entry got."""

    mean: float
    low: float
    high: float
    n: int
    scores: list[float] = field(repr=False)
    answers: list[str | None] = field(repr=False)


def evaluate(
    task: Task,
    answer_fn: Callable[[list[Prompt]], Sequence[str | None]],
    *,
    split: str = "test",
    limit: int | None = None,
) -> Score:
    """Ask ``answer_fn`` each prompt of a split (the first ``limit``) once and score what it says (None: nothing).

    Batching and progress are ``answer_fn``'s, which knows the model. Raises :class:`UserError` for an empty split
    or ``limit`` below 1, ``ValueError`` where there is not one answer for each prompt.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: at least one entry is needed for a score")
    entries = task.asked(split)[:limit]
    answers = answer_fn([entry.prompt for entry in entries])
    if len(answers) != len(entries):
        raise ValueError(f"{len(entries)} prompts were asked and {len(answers)} answers came back")
    scores = [task.score(answer, entry) for answer, entry in zip(answers, entries, strict=True)]
    low, high = interval(scores)
    return Score(sum(scores) / len(scores), low, high, len(scores), scores, list(answers))


def interval(scores: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of scores in [0, 1].

    Wilson's where all scores are 0 or 1; else the percentile bootstrap, which needs some ten scores to mean much
    (a single partial score tells nothing: (0, 1)). No scores are a :class:`UserError`.
    """
    if len(scores) == 0:
        raise UserError("there are no scores to make an interval of: evaluate at least one entry")
    values = np.asarray(scores, dtype=np.float64)
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), len(values))
    if len(values) == 1:
        return 0.0, 1.0
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share ``right / n`` (E. B. Wilson, 1927); stays in [0, 1], honest at 0 and n."""
    share = right / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and at n the bound is exact; only rounding would move it.
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)
