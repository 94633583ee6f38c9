"""Probe inputs are new, different, repeatable, and keep what the inputs have in common."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from skillweave.reason.probes import probe_inputs
from skillweave.tasks.verifiers.code_result import same_result

LISTS = [[3, 1, 2], [4], [5, 6, 7, 8]]
WORDS = ["walk twice", "jump and run", "look"]
GRIDS = [[[0, 1, 0], [2, 0, 0]], [[1, 1, 2], [0, 0, 2]]]
RECORDS = [{"a": [1], "b": "x y"}, {"a": [2, 3], "b": "z"}]


@pytest.mark.parametrize(
    "inputs",
    [
        LISTS,
        WORDS,
        ["abca", "bb"],
        GRIDS,
        [3, 9, 12],
        [0.5, 2.0],
        RECORDS,
        [[["a"], ["b", "c"]]],
        [[1, "ab", None, True], [7, "c", None, False]],
        [1e308, 2.0],
        [[1, 1.0, 2], [2.0, 1]],
    ],
    ids=str,
)
def test_probes_are_new_different_and_repeatable(inputs: list[Any]) -> None:
    before = json.dumps(inputs)
    probes = probe_inputs(inputs, 16, 0)
    assert len(probes) == 16
    texts = [json.dumps(probe) for probe in probes]
    assert len(set(texts)) == 16
    assert not any(same_result(one, other) for one, other in itertools.combinations((*inputs, *probes), 2))
    assert not any("Infinity" in text for text in texts)
    assert probe_inputs(inputs, 16, 0) == probes
    assert probe_inputs(inputs, 16, 1) != probes
    assert probe_inputs(inputs, 4, 0) == probes[:4]
    assert json.dumps(inputs) == before


@pytest.mark.parametrize("seed", range(20))
def test_probes_keep_the_conventions_of_the_inputs(seed: int) -> None:
    lists = probe_inputs(LISTS, 30, seed)
    assert all(probe and all(type(item) is int and item >= 0 for item in probe) for probe in lists)
    assert {len(probe) for probe in lists} > {1, 3, 4}, "lengths vary where those of the inputs do"
    pairs = probe_inputs([[1, 2], [5, 0], [4, 4]], 30, seed)
    assert {len(probe) for probe in pairs} == {2}, "all inputs have two items"
    words = probe_inputs(WORDS, 30, seed)
    known = {word for text in WORDS for word in text.split()}
    assert all(probe == " ".join(probe.split()) and set(probe.split()) <= known for probe in words)
    letters = probe_inputs(["abca", "bb"], 30, seed)
    assert all(probe and set(probe) <= set("abc") for probe in letters)
    for grid in probe_inputs(GRIDS, 30, seed):
        assert [len(row) for row in grid] == [3, 3]
        assert {cell for row in grid for cell in row} <= {0, 1, 2}
    for record in probe_inputs(RECORDS, 30, seed):
        assert list(record) == ["a", "b"]
        assert record["a"]
        assert set(record["b"].split()) <= {"x", "y", "z"}
    for count, text, items in probe_inputs([[2, "a b", [1, 2]], [3, "b", [4]]], 30, seed):
        assert type(count) is int, "a list of items of several types is a record"
        assert set(text.split()) <= {"a", "b"}
        assert items
        assert all(type(item) is int for item in items)
    assert all(type(probe) is int and probe >= 0 for probe in probe_inputs([3, 9, 12], 16, seed))
    assert any(probe < 0 for probe in probe_inputs([-3, 2], 16, seed))


@pytest.mark.parametrize("seed", range(5))
def test_a_list_is_empty_only_if_lists_may_be(seed: int) -> None:
    assert [] not in probe_inputs([[1], [2]], 16, seed)
    assert [] not in probe_inputs([[1], [2, 3]], 40, seed)
    assert "" not in probe_inputs(["a", "bc"], 40, seed)
    nested = probe_inputs([[[1], []], [[2]]], 40, seed)
    assert [] not in nested
    assert any([] in probe for probe in nested)


def test_where_few_exist_fewer_are_returned() -> None:
    assert probe_inputs([True, False], 16, 0) == ()
    assert probe_inputs([None], 16, 0) == ()
    assert probe_inputs([[]], 16, 0) == ()
    assert probe_inputs([""], 16, 0) == ()
    assert probe_inputs([{}], 16, 0) == ()
    assert probe_inputs([], 16, 0) == ()
    assert probe_inputs(LISTS, 0, 0) == ()
    assert sorted(probe_inputs([[True, False], [False, True]], 16, 0)) == [[False, False], [True, True]]
