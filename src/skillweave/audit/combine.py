"""One calibrated score from several signals.

Each signal is first made comparable: its score becomes a conformal p-value against clean examples, and -log10(p) is its
*surprise*. A logistic regression whose weights are not negative adds the surprises up, so that no signal can excuse
what another one found. The sum is then calibrated on clean examples of its own. [ours]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize

from skillweave.audit.statistics import conformal_p

MOST_SURPRISE = 3.0
"""A signal cannot say more than "one in a thousand": its tail is not known better than that."""


class Combination(BaseModel):
    """The weights of the signals. A higher score is more suspicious."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signals: list[str] = Field(description="names of the signals, in the order of the weights")
    weights: list[float] = Field(description="weight of each signal's surprise; never negative")
    bias: float = Field(default=0.0, description="added to the weighted sum")

    def score(self, surprises: Mapping[str, ArrayLike]) -> np.ndarray:
        """Return the weighted sum of the surprises; (n,). A signal that is missing counts as no surprise."""
        present = [(w, np.asarray(surprises[s], dtype=np.float64)) for s, w in self.parts if s in surprises]
        if not present:
            raise ValueError(f"none of the signals {self.signals} was computed")
        return self.bias + sum((weight * values for weight, values in present), start=np.zeros(len(present[0][1])))

    @property
    def parts(self) -> list[tuple[str, float]]:
        """The signals with their weights."""
        return list(zip(self.signals, self.weights, strict=True))


def surprise(scores: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """Return -log10 of the conformal p-values, at most :data:`MOST_SURPRISE`; (n,). A NaN score has surprise 0."""
    return np.minimum(-np.log10(conformal_p(scores, reference)), MOST_SURPRISE)


def fit_combination(
    bad: Mapping[str, ArrayLike], good: Mapping[str, ArrayLike], signals: Sequence[str], ridge: float = 0.01
) -> Combination:
    """Fit the weights on the surprises of bad and good examples: logistic regression with weights >= 0.

    Both classes count alike, however many examples they have. ``ridge`` times the squared weights is added to the mean
    loss, so that a perfect separation has finite weights. Shapes: each value (n,) for bad, (m,) for good.
    """
    x = np.concatenate([_columns(bad, signals), _columns(good, signals)])
    counts = (len(_columns(bad, signals)), len(_columns(good, signals)))
    if not all(counts):
        raise ValueError("a combination is fitted on bad and good examples; one of the two is empty")
    sign = np.concatenate([np.ones(counts[0]), -np.ones(counts[1])])
    share = np.concatenate([np.full(n, 0.5 / n) for n in counts])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ parameters[:-1] + parameters[-1])
        slope = -sign * share / (1 + np.exp(np.clip(margin, -50, 50)))
        value = (share * np.logaddexp(0, -margin)).sum() + ridge * (parameters[:-1] ** 2).sum()
        return float(value), np.append(x.T @ slope + 2 * ridge * parameters[:-1], slope.sum())

    bounds = [(0.0, None)] * len(signals) + [(None, None)]
    found = minimize(loss, np.zeros(len(signals) + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
    return Combination(signals=list(signals), weights=[float(w) for w in found[:-1]], bias=float(found[-1]))


def _columns(surprises: Mapping[str, ArrayLike], signals: Sequence[str]) -> np.ndarray:
    return np.stack([np.asarray(surprises[signal], dtype=np.float64) for signal in signals], axis=1)
