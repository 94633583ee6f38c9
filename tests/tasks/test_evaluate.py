"""Scores and their intervals against closed forms and simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest

from skillweave.errors import UserError
from skillweave.tasks import evaluate, interval, load_task, wilson

TASK = load_task({"source": "builtin", "name": "sort_numbers", "splits": {"train": 1, "calibration": 1, "test": 20}})


def answers_right_in(share: float):
    gold = {entry.prompt: entry.answer for entry in TASK.split("test")}

    def answer(prompts: list) -> list[str]:
        return [gold[prompt] if n < share * len(prompts) else "?" for n, prompt in enumerate(prompts)]

    return answer


def test_evaluate_counts_what_is_right() -> None:
    score = evaluate(TASK, answers_right_in(0.25))
    assert (score.mean, score.n, len(score.answers)) == (0.25, 20, 20)
    assert score.scores == [1.0] * 5 + [0.0] * 15
    assert (score.low, score.high) == wilson(5, 20)


def test_evaluate_limits_and_splits() -> None:
    assert evaluate(TASK, answers_right_in(1), limit=3).n == 3
    assert evaluate(TASK, answers_right_in(1), limit=1).mean == 1.0
    assert evaluate(TASK, lambda prompts: ["?"] * len(prompts), split="train").n == 1
    with pytest.raises(UserError, match="limit is 0"):
        evaluate(TASK, answers_right_in(1), limit=0)
    with pytest.raises(ValueError, match="20 prompts were asked and 0 answers"):
        evaluate(TASK, lambda prompts: [])


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (5, 20), (137, 200), (1, 1000)])
def test_wilson_against_scipy_and_its_defining_equation(right: int, n: int) -> None:
    low, high = wilson(right, n)
    reference = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= low <= right / n <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:  # (p - q)^2 = z^2 q (1 - q) / n is what Wilson solves for q
        distance = abs(right / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert distance == pytest.approx(1.959963984540054)


def test_interval_of_whole_scores_is_wilsons() -> None:
    assert interval([1.0, 0.0, 1.0]) == wilson(2, 3)


def test_bootstrap_is_seeded_and_holds_the_mean() -> None:
    rng = random.Random(0)
    scores = [rng.random() for _ in range(50)]
    low, high = interval(scores)
    assert interval(scores) == (low, high)
    assert interval(scores, seed=1) != (low, high)
    assert low < sum(scores) / 50 < high
    normal = 1.96 * np.std(scores, ddof=1) / math.sqrt(50)
    assert high - low == pytest.approx(2 * normal, rel=0.15)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        scores = rng.beta(2, 5, size=40)  # skewed, mean 2/7
        low, high = interval(scores.tolist(), resamples=400)
        hits += low <= 2 / 7 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_edges() -> None:
    with pytest.raises(UserError, match="no scores"):
        interval([])
    assert interval([0.4]) == (0.0, 1.0)
    assert interval([0.5] * 20) == (0.5, 0.5)
