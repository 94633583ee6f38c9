"""How well a signal tells bad from good, and what a threshold promises: pure functions on arrays of scores.

A higher score is more suspicious everywhere in the audit. The *reference* is the scores of records, runs or
checkpoints that are known to be clean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from skillweave.errors import UserError


def conformal_p(scores: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """Return the p-value of each score: (1 + reference scores that are at least as high) / (1 + size of the reference).

    If a score comes from the same distribution as the reference, P(p <= a) <= a for every a, whatever the distribution
    (split conformal prediction, Vovk et al. 2005) [relative]. The smallest p-value that a reference of n scores can
    give is 1 / (n + 1). A NaN score means that the signal could not be computed; its p-value is 1.

    Shapes: ``scores`` (n,), ``reference`` (m,) without NaN -> (n,) float64.
    """
    values = np.asarray(scores, dtype=np.float64)
    ordered = np.sort(_checked(reference, "reference"))
    at_least = len(ordered) - np.searchsorted(ordered, values, side="left")
    p = (1 + at_least) / (1 + len(ordered))
    return np.where(np.isnan(values), 1.0, p)


def threshold_at(reference: ArrayLike, false_positive_rate: float) -> float:
    """Return the threshold t for which flagging ``score > t`` has at most this false-positive rate on new clean scores.

    It is the score of rank k of the reference from above, k = floor(rate * (m + 1)): then a new clean score exceeds it
    with a probability of at most k / (m + 1), as for :func:`conformal_p`. The promise is in expectation over
    references; ``rate_interval`` tells how sure a measured rate is.

    Raises :class:`UserError` if the reference is too small to promise the rate: it needs 1 / rate - 1 scores.
    """
    ordered = np.sort(_checked(reference, "reference"))[::-1]
    if not 0 < false_positive_rate < 1:
        raise UserError(f"the false-positive rate must lie between 0 and 1, found {false_positive_rate}")
    need = least_reference(false_positive_rate)
    if len(ordered) < need:
        raise UserError(
            f"{len(ordered)} clean examples cannot promise a false-positive rate of {false_positive_rate:g}: that "
            f"takes at least {need}. Give {need - len(ordered):,} more clean examples, or allow a rate (--fpr) of at "
            f"least {promised_rate(len(ordered)):g}"
        )
    rank = math.floor(false_positive_rate * (len(ordered) + 1) + 1e-9)
    return float(ordered[rank - 1])


def least_reference(false_positive_rate: float) -> int:
    """Return the fewest clean examples that can promise a false-positive rate: 99 for 1%."""
    return math.ceil(1 / false_positive_rate - 1e-9) - 1


def promised_rate(examples: int) -> float:
    """Return the lowest false-positive rate that so many clean examples can promise, rounded up to three digits."""
    rate = 1 / (examples + 1)
    unit = 10.0 ** (math.floor(math.log10(rate)) - 2)
    return min(1.0, float(f"{math.ceil(rate / unit - 1e-9) * unit:.3g}"))


def auc(bad: ArrayLike, good: ArrayLike) -> float:
    """Return the area under the ROC curve: P(a bad score > a good score), ties counted half.

    NaN if either is empty. Shapes: (n,), (m,).
    """
    bad, good = _checked(bad, "bad"), _checked(good, "good")
    if not len(bad) or not len(good):
        return math.nan
    ranks = stats.rankdata(np.concatenate([bad, good]))
    return float((ranks[: len(bad)].sum() - len(bad) * (len(bad) + 1) / 2) / (len(bad) * len(good)))


def tpr_at(bad: ArrayLike, good: ArrayLike, false_positive_rate: float) -> float:
    """Return the share of bad scores above the lowest threshold that at most this share of the good scores exceeds.

    ``score > t`` is flagged, so tied scores are flagged together or not at all. NaN if either is empty.
    """
    bad, good = _checked(bad, "bad"), np.sort(_checked(good, "good"))[::-1]
    if not len(bad) or not len(good):
        return math.nan
    allowed = math.floor(false_positive_rate * len(good) + 1e-9)
    threshold = good[allowed] if allowed < len(good) else -math.inf
    return float(np.mean(bad > threshold))


def rate_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a rate. 0 of 60 gives 0 to 6.0% at 95% (two-sided)."""
    if n == 0:
        return 0.0, 1.0
    found = stats.binomtest(hits, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def chance_of(flagged: int, n: int, false_positive_rate: float) -> float:
    """Return P(at least ``flagged`` of ``n`` clean examples are flagged), if each is with the false-positive rate."""
    return float(stats.binom.sf(flagged - 1, n, false_positive_rate))


def robust_spread(values: ArrayLike) -> float:
    """Return 1.4826 times the median absolute deviation: the standard deviation, if the bulk of values is normal."""
    known = np.asarray(values, dtype=np.float64)
    return 1.4826 * float(np.median(np.abs(known - np.median(known))))


def bootstrap(
    groups: Sequence[tuple[ArrayLike, ArrayLike]],
    statistic: Callable[[np.ndarray, np.ndarray], float],
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return (value, low, high) of ``statistic(bad, good)``: a 95% interval from resampling inside each group.

    ``groups`` are the (bad, good) scores of each seed. A resample draws seeds with replacement, then scores within
    each drawn seed; the statistic is the mean over the drawn seeds.
    """
    draw = np.random.default_rng(seed)
    pairs = [(_checked(bad, "bad"), _checked(good, "good")) for bad, good in groups]
    value = float(np.mean([statistic(bad, good) for bad, good in pairs]))
    means = []
    for _ in range(resamples):
        chosen = [pairs[at] for at in draw.integers(len(pairs), size=len(pairs))]
        means.append(np.mean([statistic(draw.choice(b, len(b)), draw.choice(g, len(g))) for b, g in chosen]))
    low, high = np.quantile(means, [0.025, 0.975])
    return value, float(low), float(high)


def _checked(scores: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if np.isnan(values).any():
        raise ValueError(f"{name} has {int(np.isnan(values).sum())} NaN scores of {len(values)}; leave them out")
    return values
