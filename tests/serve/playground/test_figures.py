"""Live figures: quantiles of a histogram, rates between two states, and a server that does not answer yet."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Histogram

from skillweave.engine.interface import EngineCounters
from skillweave.serve.playground.figures import LiveFigures, quantile

BOUNDS = (0.1, 0.5, 1.0, 2.5)


def slow_quantile(within: dict[float, float], share: float, points: int = 20_000) -> float:
    """By search: the smallest value below which the wanted share lies, on the straight lines between the bounds."""
    corners = [(0.0, 0.0), *sorted((bound, count) for bound, count in within.items() if not math.isinf(bound))]
    total = within[math.inf]
    for step in range(points + 1):
        at = corners[-1][0] * step / points
        for (low, below), (high, above) in itertools.pairwise(corners):
            if low <= at <= high and below + (above - below) * (at - low) / (high - low) >= share * total:
                return at
    return corners[-1][0]


@pytest.mark.parametrize("seed", range(5))
def test_a_quantile_is_where_its_share_of_the_values_lies(seed: int) -> None:
    source = random.Random(seed)
    values = [source.uniform(0, 3) for _ in range(50)]
    within = {bound: float(sum(value <= bound for value in values)) for bound in (*BOUNDS, math.inf)}
    for share in (0.1, 0.5, 0.9):
        assert quantile(within, share) == pytest.approx(slow_quantile(within, share), abs=1e-3)


def test_quantiles_at_the_edges() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({0.1: 0.0, math.inf: 4.0}, 0.5) == 0.1  # all are beyond the last bound
    assert quantile({0.1: 0.0, 0.5: 1.0, math.inf: 1.0}, 0.5) == pytest.approx(0.3)


class Server:
    """Counters and metrics that a test moves, and a clock."""

    def __init__(self) -> None:
        self.now, self.opened = 100.0, True
        self.counters = EngineCounters(0, 0, 0, 0, running=0, waiting=0, steps=0, step_tokens=0, prompt_tokens=0,
                                       completion_tokens=0)  # fmt: skip
        registry = CollectorRegistry()
        self.firsts = Histogram("skillweave_first_token_seconds", "x", ["pack"], buckets=BOUNDS, registry=registry)
        self.figures = LiveFigures(self.read, registry, lambda: self.now)

    def read(self) -> EngineCounters:
        if not self.opened:
            raise RuntimeError("not open")
        return self.counters

    def write(self, seconds: float, tokens: int) -> None:
        self.now += seconds
        self.counters = replace(self.counters, completion_tokens=self.counters.completion_tokens + tokens)


def test_speed_is_that_of_the_last_seconds() -> None:
    server = Server()
    server.write(2.0, 500)
    assert server.figures.read().tokens_per_second is None
    server.write(5.0, 50)
    assert server.figures.read().tokens_per_second == pytest.approx(10.0)
    server.write(100.0, 5000)
    assert server.figures.read().tokens_per_second is None  # nobody looked in between
    server.write(0.1, 1)
    server.figures.read()  # another page looks at almost the same time
    server.write(3.9, 39)
    assert server.figures.read().tokens_per_second == pytest.approx(10.0)


def test_first_tokens_are_those_of_the_last_minute_and_of_all_packs() -> None:
    server = Server()
    server.firsts.labels("one").observe(0.05)
    server.firsts.labels("two").observe(0.05)
    assert server.figures.read().first_token == pytest.approx(0.05)
    for _ in range(40):
        server.write(2.0, 0)
        server.figures.read()
    assert server.figures.read().first_token is None
    server.firsts.labels("one").observe(0.9)
    assert server.figures.read().first_token == pytest.approx(0.75)


def test_an_engine_that_is_not_open_has_no_figures() -> None:
    server = Server()
    server.opened = False
    assert server.figures.read() is None
