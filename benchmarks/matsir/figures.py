"""From traces to figures: accuracy against calls, areas under curves, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.common.record import Claim, bootstrap, judged
from skillweave.reason.trace import SearchTrace

CALLS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of calls at which tables show the accuracy."""


def task_at(trace: SearchTrace, limit: int, *, of: str = "calls") -> float:
    """1.0 if the answer that the search had after so many calls (or tokens) has every test pair right."""
    reached = [point.task for point in trace.course if getattr(point, of) <= limit]
    return reached[-1] if reached else 0.0


def curve(trace: SearchTrace, limits: Sequence[int], *, of: str = "calls") -> np.ndarray:
    """:func:`task_at` for each limit; shape (limits,)."""
    return np.array([task_at(trace, limit, of=of) for limit in limits])


def area(trace: SearchTrace, most: int, *, of: str = "calls", points: int = 64) -> float:
    """The area under the curve of one problem, as the mean over ``points`` even limits up to ``most``; in [0, 1]."""
    limits = [round(most * (number + 1) / points) for number in range(points)]
    return float(curve(trace, limits, of=of).mean())


def areas(traces: Mapping[int, Sequence[SearchTrace]], most: int, *, of: str = "calls") -> np.ndarray:
    """The areas of one arm; shape (problems, seeds)."""
    return np.array([[area(trace, most, of=of) for trace in traces[seed]] for seed in sorted(traces)]).T


def difference(claim: str, one: np.ndarray, other: np.ndarray, goal: str) -> Claim:
    """The difference of two arms' means in points, with an interval from resampling the problems.

    Both have the shape (problems, seeds). All seeds of a problem are drawn together, because they are not independent.
    """
    gaps = 100 * (one - other).mean(axis=1)
    low, high = bootstrap(gaps, lambda drawn: drawn.mean(axis=1))
    return judged(claim, float(gaps.mean()), low, high, goal)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95% interval of (problems, seeds) values, from resampling the problems."""
    means = values.mean(axis=1)
    low, high = bootstrap(means, lambda drawn: drawn.mean(axis=1))
    return float(means.mean()), low, high
