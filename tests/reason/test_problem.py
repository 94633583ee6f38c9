"""The types keep test pairs away from a search."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest

from skillweave.reason.problem import ExamplePairs, HeldOut, IOPair, Missing, Problem
from skillweave.reason.search.frame import SearchFrame
from skillweave.reason.solution import Solution

PAIRS = (IOPair([1, 2], [2]), IOPair("a", None))
DONE = Solution((), "budget", 0, 0)


def test_only_a_solution_opens_the_inputs_and_nothing_returns_the_outputs() -> None:
    held_out = HeldOut(PAIRS)
    assert held_out.inputs(DONE) == ([1, 2], "a")
    for key in (None, "solution", object()):
        with pytest.raises(TypeError, match="Solution"):
            held_out.inputs(key)
    assert "7" not in repr(Problem(ExamplePairs("x", PAIRS), HeldOut([IOPair(7, 7)])))
    assert not [name for name in vars(HeldOut) if name in ("pairs", "outputs")]


def test_what_a_search_is_given_does_not_lead_to_a_test_pair() -> None:
    reachable = set()
    waiting = [*typing.get_type_hints(SearchFrame.__init__).values(), ExamplePairs]
    while waiting:
        kind = waiting.pop()
        waiting += typing.get_args(kind)
        if inspect.isclass(kind) and kind.__module__.startswith("skillweave.reason") and kind not in reachable:
            reachable.add(kind)
            waiting += list(typing.get_type_hints(kind).values())
            if not dataclasses.is_dataclass(kind):
                waiting += list(typing.get_type_hints(kind.__init__).values())
    assert ExamplePairs in reachable
    assert not {Problem, HeldOut} & reachable


def test_grades() -> None:
    held_out = HeldOut((IOPair(0, [1, 2]), IOPair(0, 1), IOPair(0, "a"), IOPair(0, None)))
    grade = held_out.grade([(1, 2), True, Missing("it raised"), None])
    assert grade.right == (True, False, False, True)
    assert (grade.raw, grade.task) == (0.5, 0.0)
    assert held_out.grade([[1, 2], 1, "a", None]).task == 1.0
    with pytest.raises(ValueError):
        held_out.grade([1])
    with pytest.raises(ValueError):
        HeldOut(())


def test_digests_tell_problems_apart() -> None:
    one = Problem(ExamplePairs("x", PAIRS), HeldOut((IOPair(1, 2),)))
    other = Problem(ExamplePairs("x", PAIRS), HeldOut((IOPair(1, 3),)))
    again = Problem(ExamplePairs("x", PAIRS), HeldOut((IOPair(1, 2),)))
    assert one.digest == again.digest != other.digest
