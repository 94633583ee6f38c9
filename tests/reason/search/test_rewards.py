"""The dual reward on hand-made cases: a rephrased hypothesis earns no enrichment."""

from __future__ import annotations

import pytest

from helpers.scripted_search import evaluation
from skillweave.reason.search.rewards import enrichment, gain, novelty, total_reward


def test_a_rephrasing_earns_nothing() -> None:
    parent, other = evaluation([0, 9, 9, 9]), evaluation([0, 1, 9, 9])
    assert enrichment(evaluation([0, 9, 9, 9]), parent, []) == 0.0
    assert enrichment(evaluation([0, 1, 9, 9]), parent, [other]) == 0.0
    assert enrichment(evaluation([0, 1, 9, 9]), None, [other]) == 0.0
    assert enrichment(evaluation([0, 1, 9, 9]), parent, []) > 0.0


def test_equal_training_outputs_but_other_probe_outputs_are_not_a_rephrasing_and_not_novel() -> None:
    parent = evaluation([0, 9, 9, 9], behaviour="one")
    assert enrichment(evaluation([0, 9, 9, 9], behaviour="two"), parent, []) == 0.0  # no gain, no novelty


def test_the_parts_by_hand() -> None:
    parent, sibling = evaluation([0, 9, 9, 9]), evaluation([0, 9, 2, 9])
    child = evaluation([0, 1, 2, 8])
    assert gain(child, parent) == pytest.approx(2 / 4)
    assert gain(child, None) == pytest.approx(3 / 4)
    assert novelty(child, [parent]) == pytest.approx(3 / 4)
    assert novelty(child, [parent, sibling]) == pytest.approx(2 / 4)
    assert novelty(child, []) == 1.0
    assert enrichment(child, parent, [sibling]) == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert total_reward(0.75, 0.5, 0.8) == pytest.approx(0.8 * 0.75 + 0.2 * 0.5)


def test_lost_pairs_are_no_gain_and_failures_are_alike() -> None:
    assert gain(evaluation([9, 1, 9, 9]), evaluation([0, 9, 9, 9])) == pytest.approx(1 / 4)
    assert novelty(evaluation([None, 1, 9, 9]), [evaluation([None, 1, 9, 9])]) == 0.0
    assert novelty(evaluation([None, 1, 9, 9]), [evaluation([7, 1, 9, 9])]) == pytest.approx(1 / 4)
    assert novelty(evaluation([True, 1, 9, 9]), [evaluation([1, 1, 9, 9])]) == pytest.approx(1 / 4)
