"""Preference pairs from judged answers."""

from __future__ import annotations

import itertools
import math

import pytest

from skillweave.methods.training.answers import Answered
from skillweave.methods.training.preferences import make_pairs, solve_rate


def answered(answers, scores, gold=None, id="a", ended=None):
    return Answered(id, "p", gold, answers, scores, [True] * len(answers) if ended is None else ended)


def as_set(pairs):
    return {(pair.chosen, pair.rejected) for pair in pairs}


def test_good_meets_bad_and_figures_count():
    rows = [
        answered(["g", "b"], [1.0, 0.0], id="mixed"),
        answered(["g"], [1.0], id="all good"),
        answered(["b"], [0.0], id="all bad"),
    ]
    pairs, figures = make_pairs(rows)
    assert [(pair.id, pair.chosen, pair.rejected, pair.source) for pair in pairs] == [("mixed", "g", "b", "own")]
    assert (figures.prompts, figures.answers, figures.solved_prompts) == (3, 4, 2)
    assert figures.solve_rate == 0.5
    assert (figures.pairs, figures.gold_pairs, figures.prompts_without_pair) == (1, 0, 2)


@pytest.mark.parametrize(
    ("scores", "ended", "gold", "expected"),
    [
        ([1, 0], [False, False], "G", []),
        ([1, 0], [False, True], None, []),
        ([1, 0], [True, False], None, []),
        # Its own right answer did not end: the gold answer is the chosen one.
        ([1, 0], [False, True], "G", [("G", "b", "gold")]),
        ([1, 0], [True, True], "G", [("a", "b", "own")]),
    ],
)
def test_an_answer_that_was_cut_off_is_neither_chosen_nor_rejected(scores, ended, gold, expected):
    pairs, figures = make_pairs([answered(["a", "b"], scores, gold, ended=ended)])
    assert [(pair.chosen, pair.rejected, pair.source) for pair in pairs] == expected
    assert figures.cut_off == ended.count(False)
    assert figures.solve_rate == 0.5
    assert figures.prompts_without_pair == (not expected)


def test_the_whole_one_of_two_equal_texts_counts():
    pairs, _ = make_pairs([answered(["g", "g", "b", "b"], [1, 1, 0, 0], ended=[False, True, True, False])])
    assert as_set(pairs) == {("g", "b")}


def test_nothing_at_all():
    pairs, figures = make_pairs([])
    assert pairs == []
    assert figures.solve_rate == 0.0
    assert figures.prompts == 0
    assert make_pairs([answered([], [])])[0] == []


def test_threshold_is_reached_at_equality_and_nan_is_bad():
    pairs, figures = make_pairs([answered(["half", "nan"], [0.5, math.nan])], threshold=0.5)
    assert as_set(pairs) == {("half", "nan")}
    assert figures.solve_rate == 0.5
    assert make_pairs([answered(["half", "nan"], [0.5, math.nan])], threshold=0.51)[1].solve_rate == 0.0


def test_duplicates_count_once_and_white_space_makes_no_difference():
    pairs, _ = make_pairs([answered(["g", "g ", "b", "\nb"], [1, 1, 0, 0])], max_pairs_per_prompt=9)
    assert len(pairs) == 1


def test_a_text_judged_both_ways_is_used_as_neither():
    pairs, figures = make_pairs([answered(["x", "x", "b"], [1, 0, 0])])
    assert pairs == []
    assert figures.prompts_without_pair == 1
    pairs, _ = make_pairs([answered(["x", "x", "g", "b"], [1, 0, 1, 0])], max_pairs_per_prompt=9)
    assert as_set(pairs) == {("g", "b")}


def test_gold_only_where_nothing_was_solved():
    rows = [answered(["b"], [0.0], gold="G", id="fails"), answered(["g", "b"], [1, 0], gold="G", id="solved")]
    pairs, figures = make_pairs(rows)
    assert [(pair.chosen, pair.source) for pair in pairs] == [("G", "gold"), ("g", "own")]
    assert figures.gold_pairs == 1
    assert [pair.source for pair in make_pairs(rows, gold_as_chosen=False)[0]] == ["own"]


def test_gold_that_the_verifier_called_bad_is_not_chosen():
    assert make_pairs([answered(["G ", "b"], [0, 0], gold="G")])[0] == []


@pytest.mark.parametrize(("good", "bad"), [(1, 1), (2, 4), (3, 3), (4, 6), (5, 1)])
def test_every_combination_comes_once_and_the_first_are_spread(good, bad):
    row = answered([f"g{i}" for i in range(good)] + [f"b{i}" for i in range(bad)], [1] * good + [0] * bad)
    pairs, _ = make_pairs([row], max_pairs_per_prompt=good * bad + 5)
    assert len(pairs) == good * bad
    expected = itertools.product((f"g{i}" for i in range(good)), (f"b{i}" for i in range(bad)))
    assert as_set(pairs) == set(expected)
    first = pairs[: min(good, bad)]
    assert len({pair.chosen for pair in first}) == len({pair.rejected for pair in first}) == len(first)


def test_limit_seed_and_order_of_prompts():
    rows = [answered([f"{c}{i}" for c in "gb" for i in range(5)], [1] * 5 + [0] * 5, id=name) for name in "xy"]
    pairs, _ = make_pairs(rows, max_pairs_per_prompt=3, seed=1)
    assert [pair.id for pair in pairs] == ["x"] * 3 + ["y"] * 3
    assert pairs == make_pairs(rows, max_pairs_per_prompt=3, seed=1)[0]
    assert pairs != make_pairs(rows, max_pairs_per_prompt=3, seed=2)[0]


def test_solve_rate_of_all_answers():
    assert solve_rate([answered(["a", "b"], [1, 0]), answered(["c", "d"], [1, 1])], 0.5) == 0.75
