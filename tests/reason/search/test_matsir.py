"""MATSIR's search on scripted agents whose tree is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from helpers.scripted_search import EXAMPLES, ScriptedLab, ScriptedTeam
from skillweave.reason.budget import Budget, Meter
from skillweave.reason.search.frame import SearchFrame
from skillweave.reason.search.matsir import MatsirConfig, search_matsir
from skillweave.reason.search.tree import Tree

OUTPUTS: dict[str, Sequence[object]] = {
    "bad": [9, 9, 9, 9],
    "one": [0, 9, 9, 9],
    "two": [0, 1, 9, 9],
    "other": [9, 9, 9, 3],
    "three": [0, 1, 2, 9],
    "all": [0, 1, 2, 3],
    "crash": [None, None, None, None],
}


def search(
    script: dict[str, list[str]], calls: int = 40, parallel: int = 1, votes: int = 1, **settings: object
) -> tuple[SearchFrame, ScriptedTeam, str, Meter]:
    meter = Meter(Budget(calls=calls))
    team = ScriptedTeam(script, meter)
    frame = SearchFrame(EXAMPLES, team, ScriptedLab(OUTPUTS), meter, parallel=parallel, votes=votes)
    ended = asyncio.run(search_matsir(frame, MatsirConfig(**{"critic": True, **settings})))
    return frame, team, ended, meter


def shape(tree: Tree) -> list[tuple[int, int | None, str, str]]:
    return [
        (node.number, node.parent, node.hypothesis.program if node.hypothesis else "", node.state)
        for node in tree.nodes[1:]
    ]


def test_it_refines_towards_the_solution_and_stops_there() -> None:
    script = {"root": ["one"], "one": ["two"], "two": ["three"], "three": ["all"]}
    frame, team, ended, meter = search(script)
    assert ended == "solved"
    assert shape(frame.tree) == [
        (1, 0, "one", "dominated"),
        (2, 1, "two", "dominated"),
        (3, 2, "three", "open"),
        (4, 3, "all", "solved"),
    ]
    assert team.criticised == ["one", "two", "three"]
    assert meter.calls == 1 + 3 * 2  # a proposal, and three times critic and refiner
    assert [node.visits for node in frame.tree.nodes] == [4, 4, 3, 2, 1]
    assert frame.end("solved").programs == ("all",)
    assert [best.programs for best in frame.end("solved").course] == [("one",), ("two",), ("three",), ("all",)]


def test_rewards_of_the_chain_by_hand() -> None:
    script = {"root": ["one"], "one": ["two"], "two": ["all"]}
    frame, *_ = search(script, coherence=0.8)
    rewards = [node.reward for node in frame.tree.nodes[1:]]
    # coherent 1/4, 2/4, 4/4; gain 1/4, 1/4, 2/4; novelty 1 (the first), 1/4, 2/4
    expected = [0.8 * 0.25 + 0.2 * (0.25 + 1) / 2, 0.8 * 0.5 + 0.2 * 0.25, 0.8 * 1 + 0.2 * 0.5]
    assert rewards == pytest.approx(expected)
    root = frame.tree.root
    assert root.total == pytest.approx(sum(expected))
    assert root.best == pytest.approx(max(expected))


def test_rephrasings_are_merged_and_never_refined() -> None:
    script = {"root": ["one", "one'"], "one": ["one'"], "one'": ["all"]}
    frame, team, ended, _ = search(script, calls=12, patience=9)
    assert ended == "budget"
    states = {node.state for node in frame.tree.nodes[2:]}
    assert states == {"equal"}
    assert all(node.enriched == 0.0 for node in frame.tree.nodes[2:])
    assert {told[1] for told in team.told} == {"one"}


def test_without_pruning_a_rephrasing_may_be_refined() -> None:
    script = {"root": ["one", "one'"], "one": ["one'"], "one'": ["all"]}
    _, _, ended, _ = search(script, calls=40, merge=False, prune=False, backtrack=False)
    assert ended == "solved"


def test_it_goes_back_and_tells_the_refiner_what_failed() -> None:
    script = {"root": ["one"], "one": ["two", "three"], "two": ["bad"], "three": ["all"]}
    frame, team, ended, _ = search(script, patience=2, critic=False)
    assert ended == "solved"
    assert frame.tree[2].closed  # "two" was given up after two refinements
    back = next(told for told in team.told if told[3])
    assert (back[1], back[3]) == ("one", ["two"])


def test_without_backtracking_it_stays() -> None:
    script = {"root": ["one"], "one": ["two", "three"], "two": ["bad"], "three": ["all"]}
    frame, _, ended, _ = search(script, calls=15, patience=2, critic=False, backtrack=False)
    assert ended == "budget"
    assert not any(node.closed for node in frame.tree.nodes)


def test_a_crashing_hypothesis_is_judged_and_never_answers() -> None:
    frame, *_ = search({"root": ["crash"], "crash": ["crash"]}, calls=6)
    node = frame.tree[1]
    assert (node.coherent, frame.end("budget").programs) == (0.25, ())
    frame, _, _, meter = search({"root": ["crash"], "crash": ["crash"]}, calls=1, judge=False)
    assert (frame.tree[1].coherent, meter.calls) == (0.0, 1)


def test_unreadable_answers_are_counted_as_failed_nodes() -> None:
    frame, *_ = search({"root": ["unreadable", "one"]}, calls=3)
    assert (frame.tree[1].state, frame.tree[1].failure, frame.tree[1].reward) == ("failed", "no program was found", 0.0)
    assert frame.tree.root.visits == len(frame.tree.nodes) - 1


@pytest.mark.parametrize("parallel", [1, 3, 8])
def test_the_budget_is_never_exceeded_and_searches_are_repeatable(parallel: int) -> None:
    script = {"root": ["one", "other", "bad"], "one": ["two", "bad"], "two": ["bad", "three"], "three": ["bad"]}
    runs = [search(script, calls=33, parallel=parallel) for _ in range(2)]
    assert runs[0][3].calls <= 33
    assert runs[0][2] == "budget"
    assert shape(runs[0][0].tree) == shape(runs[1][0].tree)
    pending = [(node.pending, node.growing) for node in runs[0][0].tree.nodes]
    assert set(pending) == {(0, 0)}


def test_several_expansions_of_one_node_share_the_critics_note() -> None:
    script = {"root": ["one"], "one": ["bad", "other", "two"]}
    _, team, _, _ = search(script, calls=40, parallel=4, patience=9)
    assert len(team.criticised) == len(set(team.criticised))
    assert all(note == f"part of {program}: it fails" for _, program, note, _ in team.told)


def test_votes_go_on_after_the_first_solution() -> None:
    script = {"root": ["all", "one", "all'"]}
    frame, _, ended, _ = search(script, votes=2, critic=False)
    assert ended == "solved"
    assert frame.end(ended).programs == ("all", "all'")
    assert frame.answer == [1, 3]
