"""From generations to pairs that are worth training on."""

from __future__ import annotations

import pytest

from helpers.micro import micro_tokenizer
from skillweave.methods.tpaw.config import FAULTS
from skillweave.methods.tpaw.pairs import (
    SelfPlayPair,
    count_faults,
    faults_of,
    pairs_by_verifier,
    pairs_of_samples,
    without_faults,
)
from skillweave.methods.training.answers import Answered


@pytest.fixture(scope="module")
def tokenizer():
    return micro_tokenizer()


def answered(answers, *, gold="777", scores=None, ended=None, id="a", prompt="say 7"):
    count = len(answers)
    return Answered(id, prompt, gold, answers, scores or [0.0] * count, ended or [True] * count)


def pair(id="a", target="777", generated="8", faults=()):
    return SelfPlayPair(id, "say 7", target, generated, faults)


@pytest.mark.parametrize(
    ("generated", "ended", "found"),
    [
        ("778", True, ()),
        ("777", True, ("equal",)),
        (" 777\n", True, ("equal",)),
        ("7 77", True, ()),
        ("777", False, ("equal", "truncated")),
        ("888", False, ("truncated",)),
        ("", True, ("empty", "length")),
        (" \n\t", True, ("empty",)),
        ("", False, ("empty", "truncated", "length")),
    ],
)
def test_faults_are_named(tokenizer, generated, ended, found):
    assert faults_of(tokenizer, "777", generated, ended, 3.0) == found


def test_an_empty_target_and_an_empty_generation_are_equal(tokenizer):
    assert faults_of(tokenizer, "", " ", True, 4.0) == ("equal", "empty")


@pytest.mark.parametrize(
    ("target", "generated", "ratio", "unlike"),
    [
        # In tokens: one a character, and one for the end.
        ("777", "8" * 7, 2.0, False),
        ("777", "8" * 8, 2.0, True),
        ("8" * 7, "777", 2.0, False),
        ("8" * 8, "777", 2.0, True),
        ("777", "888", 1.01, False),
        ("777", "88", 1.01, True),
    ],
)
def test_lengths_may_differ_by_the_ratio_and_no_more_on_either_side(tokenizer, target, generated, ratio, unlike):
    assert faults_of(tokenizer, target, generated, True, ratio) == (("length",) if unlike else ())


def test_every_answer_makes_a_pair_in_order(tokenizer):
    rows = [
        answered(["8", "777", "9"], ended=[True, True, False], id="x"),
        answered(["1"], gold=None, id="no gold"),
        answered([], id="no answer"),
        answered(["777"], gold="1", id="y", prompt="say 1"),
    ]
    assert pairs_of_samples(tokenizer, rows, 4.0) == [
        SelfPlayPair("x", "say 7", "777", "8", ()),
        SelfPlayPair("x", "say 7", "777", "777", ("equal",)),
        SelfPlayPair("x", "say 7", "777", "9", ("truncated",)),
        SelfPlayPair("y", "say 1", "1", "777", ()),
    ]
    assert pairs_of_samples(tokenizer, rows, 1.5)[0].faults == ("length",)
    assert pairs_of_samples(tokenizer, [], 4.0) == []


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        (FAULTS, "a"),
        ((), "abe"),
        (("equal",), "ae"),
        (("truncated",), "abe"),
        (("equal", "length"), "a"),
        (("empty",), "abe"),
    ],
)
def test_the_faults_in_drop_leave_a_pair_out_and_a_cut_off_answer_always_does(drop, kept):
    pairs = [
        pair("a"),
        pair("b", faults=("equal",)),
        pair("c", faults=("truncated",)),
        pair("d", faults=("truncated", "length")),
        pair("e", faults=("length",)),
    ]
    assert "".join(one.id for one in without_faults(pairs, drop)) == kept


def test_of_the_same_pair_the_first_stays():
    first = pair(faults=("length",))
    pairs = [first, pair(), pair(generated="8 "), pair(target="77"), pair(id="b"), pair()]
    assert without_faults(pairs, ()) == [first, *pairs[2:5]]
    assert without_faults(pairs, ())[0] is first
    # What is dropped does not stand for a sound one.
    assert without_faults(pairs, ("length",)) == pairs[1:5]
    assert without_faults([], FAULTS) == []


def test_faults_are_counted_each_by_itself():
    pairs = [pair(), pair(faults=("empty", "truncated")), pair(faults=("truncated",))]
    assert count_faults(pairs) == {"equal": 0, "empty": 1, "truncated": 2, "length": 0}
    assert count_faults([]) == dict.fromkeys(FAULTS, 0)


def test_preferences_are_the_verifiers_and_the_gold_answer_steps_in():
    rows = [
        answered(["777", "8"], scores=[1.0, 0.0], id="own"),
        answered(["8", "9"], id="gold steps in"),
        answered(["777", "777"], scores=[1.0, 1.0], id="all right"),
        answered(["8"], gold=None, id="no gold"),
        answered([], id="none"),
        answered(["777", "8", "9"], scores=[1.0, 0.0, 0.0], ended=[False, True, False], id="cut off"),
    ]
    pairs = pairs_by_verifier(rows, seed=0)
    assert {(one.id, one.target, one.generated) for one in pairs} == {
        ("own", "777", "8"),
        ("gold steps in", "777", "8"),
        ("gold steps in", "777", "9"),
        ("cut off", "777", "8"),  # its own right answer did not end: the chosen one is the gold answer
    }
    assert all(one.faults == () for one in pairs)
    assert pairs_by_verifier([], seed=0) == []


def test_a_prompt_has_no_more_preferences_than_answers():
    row = answered([*"123", *"456"], scores=[1.0] * 3 + [0.0] * 3)
    pairs = pairs_by_verifier([row], seed=0)
    assert len(pairs) == len({(one.target, one.generated) for one in pairs}) == 6
    assert pairs == pairs_by_verifier([row], seed=0)
