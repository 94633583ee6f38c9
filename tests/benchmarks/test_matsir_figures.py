"""The figures that the comparison of searches makes of its traces."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from helpers.search_traces import made_up_trace
from skillweave.reason.trace import SearchTrace, TracedCheckpoint

figures = importlib.import_module("benchmarks.matsir.figures")


def trace(*course: tuple[int, int, float]) -> SearchTrace:
    """A trace whose answer had this task accuracy after so many calls and tokens."""
    points = [TracedCheckpoint(calls=c, tokens=t, coherent=0.5, raw=task, task=task) for c, t, task in course]
    return made_up_trace(nodes=2).model_copy(update={"course": points})


def test_the_accuracy_at_a_number_of_calls_is_that_of_the_answer_then() -> None:
    one = trace((4, 100, 0.0), (8, 300, 1.0), (12, 500, 0.0))
    assert [figures.task_at(one, calls) for calls in (1, 7, 8, 11, 12, 64)] == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert figures.task_at(one, 300, of="tokens") == 1.0
    assert figures.task_at(trace(), 64) == 0.0


def test_the_area_is_the_mean_over_the_calls() -> None:
    one = trace((4, 100, 0.0), (8, 300, 1.0))
    assert figures.area(one, 64) == pytest.approx(57 / 64)
    assert figures.area(one, 400, of="tokens", points=4) == pytest.approx(2 / 4)
    assert figures.area(trace((1, 1, 1.0)), 64) == 1.0
    assert figures.areas({0: [one, trace()], 1: [trace(), one]}, 64).tolist() == [[57 / 64, 0.0], [0.0, 57 / 64]]


def test_a_difference_resamples_problems() -> None:
    ahead = np.array([[1.0, 1.0]] * 20)
    claim = figures.difference("x", ahead, ahead - 0.1, "> 5")
    assert (claim.value, claim.low, claim.high) == (pytest.approx(10), pytest.approx(10), pytest.approx(10))
    assert claim.holds
    assert not figures.difference("x", ahead, ahead, "> 0").holds
    mixed = np.array([[1.0, 1.0], [0.0, 0.0]] * 20)
    mean, low, high = figures.interval(mixed)
    assert mean == 0.5
    assert low < 0.5 < high
