"""The time that is left of the demo: guessed at first, then measured."""

from __future__ import annotations

import pytest
import torch

from skillweave.demo.estimate import Estimate, product_seconds

STEPS = {"a/score": 10.0, "a/delta": 60.0, "b/delta": 30.0}


def test_the_guess_holds_until_something_is_done() -> None:
    assert Estimate(STEPS, 2.0).begin("a/score", 100.0) == 200.0
    assert Estimate(STEPS, 0.5).begin("b/delta", 0.0) == 15.0  # resumed: what is done before counts no more


def test_what_steps_took_here_replaces_the_guess() -> None:
    estimate = Estimate(STEPS, 2.0)
    estimate.begin("a/score", 100.0)
    assert estimate.begin("a/delta", 130.0) == pytest.approx(270.0)  # 10 s of the reference took 30 here
    assert estimate.begin("b/delta", 130.0 + 50.0) == pytest.approx(30 * (30 + 50) / 70)


def test_a_short_step_moves_the_guess_a_little() -> None:
    estimate = Estimate({"short": 1.0, "long": 99.0}, 1.0)
    estimate.begin("short", 0.0)
    assert estimate.begin("long", 3.0) == pytest.approx(99 * (1.0 * 0.9 + 3.0 * 0.1))


def test_steps_that_nobody_timed_count_as_nothing() -> None:
    estimate = Estimate(STEPS, 1.0)
    assert estimate.begin("c/delta", 0.0) == 0.0
    assert estimate.begin("b/delta", 500.0) == 30.0


def test_a_product_is_timed() -> None:
    assert 0 < product_seconds(torch.float32, torch.device("cpu")) < 60
