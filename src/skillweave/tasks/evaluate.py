"""Score a model on a task, with a 95% interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from typing import Any

import numpy as np

from skillweave.base.chat import Prompt
from skillweave.errors import UserError
from skillweave.tasks.samples import pass_at, same_answer, shown_ks, vote
from skillweave.tasks.task import Entry, Task

_Z = 1.959963984540054  # the normal distribution's 97.5% quantile


@dataclass(frozen=True)
class Figure:
    """A mean over prompts, in [0, 1], with its 95% interval (:func:`interval`)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The mean of ``values``, one for each prompt."""
        return cls(sum(values) / len(values), *interval(values))


@dataclass(frozen=True)
class Score:
    """The mean score over ``n`` entries in [0, 1], its 95% interval, and the score of each entry.

    * ``scores``: (n,) the mean over each entry's samples
    * ``answers``: (n * samples,) the answers, entry after entry, ``samples`` of each
    * ``sampled``: (n, samples) the scores of these answers
    * ``pass_at``: pass@k by k, if there are several samples; a sample passes with a score of 1
    * ``voted``: (n,) the index of the sample that the majority agrees with
    * ``majority``: the mean score of the voted samples
    """

    mean: float
    low: float
    high: float
    n: int
    scores: list[float] = field(repr=False)
    answers: list[str | None] = field(repr=False)
    entries: list[Entry] = field(repr=False)
    samples: int = 1
    sampled: list[list[float]] = field(default_factory=list, repr=False)
    pass_at: dict[int, Figure] = field(default_factory=dict)
    majority: Figure | None = None
    voted: list[int] = field(default_factory=list, repr=False)

    @property
    def figure(self) -> Figure:
        """The mean with its interval."""
        return Figure(self.mean, self.low, self.high)

    @property
    def figures(self) -> dict[str, Any]:
        """The figures for a JSON file, without the answers."""
        figures: dict[str, Any] = {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}
        if self.samples > 1:
            figures["samples"] = self.samples
            figures["pass_at"] = {str(k): asdict(figure) for k, figure in self.pass_at.items()}
        if self.majority is not None:
            figures["majority"] = asdict(self.majority)
        return figures


def evaluate(
    task: Task,
    answer_fn: Callable[[list[Prompt]], Sequence[str | None]],
    *,
    split: str = "test",
    limit: int | None = None,
    samples: int = 1,
    ask: Callable[[Entry], Prompt] = lambda entry: entry.prompt,
) -> Score:
    """The score of ``answer_fn`` on the prompts of a split, or on the first ``limit`` of them.

    * ``answer_fn`` maps prompts to answers; None means no answer. It knows the model, so it does batching and progress
    * ``samples``: each prompt is repeated this many times, directly after each other
    * ``ask`` makes the prompt of an entry

    Raises :class:`UserError` for an empty split or a ``limit`` below 1, and ``ValueError`` if ``answer_fn`` does not
    return one answer for each prompt.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: at least one entry is needed for a score")
    entries = task.distinct(split)[:limit]
    answers = answer_fn([prompt for entry in entries for prompt in [ask(entry)] * samples])
    if len(answers) != samples * len(entries):
        raise ValueError(f"{samples * len(entries)} prompts were asked and {len(answers)} answers came back")
    drawn = [answers[at : at + samples] for at in range(0, len(answers), samples)]
    sampled = [[task.score(answer, entry) for answer in each] for each, entry in zip(drawn, entries, strict=True)]
    scores = [sum(each) / samples for each in sampled]
    mean = Figure.of(scores)
    score = Score(mean.value, mean.low, mean.high, len(scores), scores, list(answers), entries, samples, sampled)
    return score if samples == 1 else _with_samples(score, task, drawn)


def _with_samples(score: Score, task: Task, drawn: Sequence[Sequence[str | None]]) -> Score:
    right = [sum(value == 1 for value in each) for each in score.sampled]
    voted = [vote(answers, same_answer(task)) for answers in drawn]
    return replace(
        score,
        pass_at={k: Figure.of([pass_at(k, score.samples, count) for count in right]) for k in shown_ks(score.samples)},
        majority=Figure.of([each[chosen] for each, chosen in zip(score.sampled, voted, strict=True)]),
        voted=voted,
    )


def interval(scores: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of scores in [0, 1].

    It is Wilson's interval if all scores are 0 or 1; else the percentile bootstrap over the scores, one for each
    prompt. The bootstrap needs about ten scores to be meaningful; a single partial score gives (0, 1).

    Raises :class:`UserError` if there are no scores.
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
    """Wilson's 95% score interval of the share ``right / n`` (E. B. Wilson, 1927), within [0, 1] also at 0 and n."""
    share = right / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and at n the exact bound is known; computing it would only add a rounding error.
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)
