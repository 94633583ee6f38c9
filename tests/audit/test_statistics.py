"""Statistics of the audit against slow loops, closed forms and edge cases."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from skillweave.audit.combine import Combination, fit_combination, surprise
from skillweave.audit.statistics import (
    auc,
    bootstrap,
    conformal_p,
    least_reference,
    rate_interval,
    robust_spread,
    threshold_at,
    tpr_at,
)
from skillweave.errors import UserError


def test_conformal_p_counts_the_reference():
    reference = [0.0, 1.0, 1.0, 3.0]
    scores = [-1.0, 0.0, 1.0, 2.0, 3.0, 9.0, math.nan]
    slow = [(1 + sum(r >= s for r in reference)) / 5 for s in scores[:-1]]
    assert conformal_p(scores, reference).tolist() == pytest.approx([*slow, 1.0])
    assert conformal_p([5.0], []).tolist() == [1.0], "without a reference nothing is surprising"


def test_the_threshold_keeps_its_promise_on_new_clean_scores():
    draw = np.random.default_rng(0)
    rates = [np.mean(draw.normal(size=2000) > threshold_at(draw.normal(size=199), 0.05)) for _ in range(300)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.005)
    assert threshold_at(np.arange(99.0), 0.01) == 98.0, "the highest of 99 scores promises 1%"
    with pytest.raises(UserError, match=r"98 clean examples.*at least 99"):
        threshold_at(np.arange(98.0), 0.01)
    with pytest.raises(UserError, match="between 0 and 1"):
        threshold_at(np.arange(98.0), 1.5)


@pytest.mark.parametrize("rate", [0.5, 0.3, 0.1, 0.05, 1 / 31, 0.01, 0.001])
def test_the_fewest_clean_scores_are_just_enough(rate: float):
    need = least_reference(rate)
    assert threshold_at(np.arange(float(need)), rate) == need - 1
    with pytest.raises(UserError, match="cannot promise"):
        threshold_at(np.arange(float(need - 1)), rate)


def test_the_robust_spread_is_that_of_the_bulk():
    draw = np.random.default_rng(4)
    assert robust_spread([*draw.normal(5, 3, 9000), *[1e9] * 50]) == pytest.approx(3, rel=0.05)
    assert robust_spread([2.0]) == 0


def test_auc_is_scikit_learns_with_ties():
    draw = np.random.default_rng(1)
    bad, good = draw.integers(2, 8, 40), draw.integers(0, 6, 70)
    wanted = roc_auc_score([1] * 40 + [0] * 70, np.concatenate([bad, good]))
    assert auc(bad, good) == pytest.approx(wanted)
    assert auc([1.0], [1.0]) == 0.5
    assert math.isnan(auc([], [1.0]))
    with pytest.raises(ValueError, match="1 NaN scores of 2"):
        auc([1.0, math.nan], [0.0])


def test_tpr_never_allows_more_false_positives_than_asked():
    draw = np.random.default_rng(2)
    for _ in range(50):
        bad, good = draw.integers(0, 9, 30), draw.integers(0, 7, 50)
        for rate in (0.0, 0.02, 0.1, 1.0):
            allowed = [t for t in (-math.inf, *good) if np.mean(good > t) <= rate]
            assert tpr_at(bad, good, rate) == max(np.mean(bad > t) for t in allowed)
    assert math.isnan(tpr_at([1.0], [], 0.01))


def test_an_interval_is_exact():
    assert rate_interval(0, 60)[1] == pytest.approx(1 - 0.025 ** (1 / 60))
    assert rate_interval(0, 0) == (0.0, 1.0)
    assert rate_interval(60, 60)[1] == 1.0


def test_bootstrap_of_separated_scores_has_no_width():
    assert bootstrap([([2.0, 3.0], [0.0, 1.0])] * 3, auc, resamples=20) == (1.0, 1.0, 1.0)


def test_surprise_is_bounded_and_zero_for_nothing():
    reference = np.arange(10_000.0)
    assert surprise([1e9], reference).tolist() == [3.0]
    assert surprise([-1.0, math.nan], reference) == pytest.approx([0.0, 0.0], abs=1e-3)


def test_a_combination_finds_the_signal_that_tells_and_never_a_negative_weight():
    draw = np.random.default_rng(3)
    good = {"tells": draw.exponential(0.4, 500), "noise": draw.exponential(0.4, 500), "wrong": draw.exponential(1, 500)}
    bad = {"tells": draw.exponential(2, 50), "noise": draw.exponential(0.4, 50), "wrong": draw.exponential(0.2, 50)}
    found = fit_combination(bad, good, ["tells", "noise", "wrong"])
    weights = dict(found.parts)
    assert weights["tells"] > 1
    assert weights["wrong"] == 0.0
    assert weights["noise"] < 0.3 * weights["tells"]
    assert auc(found.score(bad), found.score(good)) >= auc(bad["tells"], good["tells"]) - 0.02
    with pytest.raises(ValueError, match="one of the two is empty"):
        fit_combination({"a": []}, {"a": [1.0]}, ["a"])


def test_a_signal_that_is_missing_counts_as_no_surprise():
    both = Combination(signals=["a", "b"], weights=[1.0, 2.0], bias=0.5)
    assert both.score({"a": [1.0, 0.0]}).tolist() == [1.5, 0.5]
    with pytest.raises(ValueError, match="none of the signals"):
        both.score({"c": [1.0]})
