"""The budget: how it is written, and how it is counted."""

from __future__ import annotations

import pytest

from skillweave.errors import UserError
from skillweave.reason.budget import Budget, Meter, parse_budget


def test_budgets_as_people_write_them() -> None:
    assert parse_budget("calls=64,tokens=20k") == Budget(calls=64, tokens=20_000)
    assert parse_budget(" tokens = 1.5M , seconds=2.5") == Budget(calls=None, tokens=1_500_000, seconds=2.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("64", "not KEY=NUMBER"),
        ("call=64", "did you mean 'calls'"),
        ("calls=0", "whole number"),
        ("calls=9999999999999999999999", "more than any run takes"),
        (f"tokens={'9' * 400}", "more than any run takes"),
        ("calls=1.5", "whole number"),
        ("calls=1,calls=2", "twice"),
        ("", "not KEY=NUMBER"),
        ("seconds=0", "positive"),
        ("calls=-3", "not KEY=NUMBER"),
    ],
)
def test_mistakes_are_explained(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_budget(text)


def test_calls_are_never_exceeded_and_can_be_given_back() -> None:
    meter = Meter(Budget(calls=2))
    assert [meter.reserve(), meter.reserve(), meter.reserve()] == [True, True, False]
    assert (meter.calls, meter.room) == (2, 0)
    meter.release()
    assert (meter.room, meter.reserve(), meter.reserve()) == (1, True, False)


def test_tokens_and_seconds_stop_new_calls() -> None:
    now = [0.0]
    meter = Meter(Budget(calls=None, tokens=100, seconds=5), clock=lambda: now[0])
    meter.charge(99)
    assert meter.reserve()
    meter.charge(1)
    assert (meter.room, meter.reserve(), meter.tokens) == (0, False, 100)
    meter = Meter(Budget(calls=None, tokens=100, seconds=5), clock=lambda: now[0])
    now[0] = 5.0
    assert not meter.reserve()
