"""What the server does right now, from its own counters: requests, tokens per second, the time to the first token."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from skillweave.engine.interface import EngineCounters

_FIRST_TOKEN = "skillweave_first_token_seconds_bucket"
_MINUTE = 60.0
_RATE_OVER = (4.0, 20.0)
"""Seconds between the two states whose difference is the tokens per second."""
_APART = 0.5
"""Several pages ask at once; states that are closer than this are one."""


@dataclass(frozen=True)
class Figures:
    """What the server does now.

    - ``tokens_per_second``: of all answers together in the last seconds; None if nobody looked some seconds ago
    - ``first_token``: the median time to the first token, in seconds, of the answers that began in the last minute, or
      since the figures were last read if that is longer ago; None if there was none
    """

    running: int
    waiting: int
    tokens_per_second: float | None
    first_token: float | None


@dataclass(frozen=True)
class _State:
    at: float
    tokens: int
    firsts: dict[float, float]
    """upper bound in seconds -> answers that began within it"""


class LiveFigures:
    """Remembers the counters of the last minute. Make it before the engine has done anything.

    - ``counters``: of the engine; a RuntimeError says that it is not open yet
    - ``registry``: the metrics of the server, with the histogram of first tokens
    """

    def __init__(
        self,
        counters: Callable[[], EngineCounters],
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters, self._registry, self._clock = counters, registry, clock
        self._states = deque([_State(clock(), 0, {})])

    def read(self) -> Figures | None:
        """Return the figures, or None while the engine is not open."""
        try:
            counters = self._counters()
        except RuntimeError:
            return None
        now = _State(self._clock(), counters.completion_tokens, self._firsts())
        while len(self._states) > 1 and self._states[1].at <= now.at - _MINUTE:
            self._states.popleft()
        known = self._states[0].firsts
        began = {bound: count - known.get(bound, 0.0) for bound, count in now.firsts.items()}
        rate = next(
            (
                (now.tokens - before.tokens) / (now.at - before.at)
                for before in reversed(self._states)
                if _RATE_OVER[0] <= now.at - before.at <= _RATE_OVER[1]
            ),
            None,
        )
        if now.at - self._states[-1].at >= _APART:
            self._states.append(now)
        return Figures(counters.running, counters.waiting, rate, quantile(began, 0.5))

    def _firsts(self) -> dict[float, float]:
        found: dict[float, float] = {}
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name == _FIRST_TOKEN:
                    bound = float(sample.labels["le"])
                    found[bound] = found.get(bound, 0.0) + sample.value
        return found


def quantile(within: dict[float, float], share: float) -> float | None:
    """Return a quantile of a histogram, or None if it is empty.

    - ``within``: upper bound -> how many values are at most that; the last bound is infinity
    - between two bounds, values are taken as evenly spread, as Prometheus' ``histogram_quantile`` does. A quantile
      beyond the last finite bound is that bound.
    """
    bounds = sorted(within)
    total = within[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    below, low = 0.0, 0.0
    for bound in bounds:
        if within[bound] >= share * total and within[bound] > below:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (share * total - below) / (within[bound] - below)
        below, low = within[bound], bound
    raise AssertionError("the last bound holds all values")
