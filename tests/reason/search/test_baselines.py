"""The baselines on scripted agents: their shapes, their draws, and the budget that they share."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import numpy as np
import pytest

from helpers.scripted_search import EXAMPLES, ScriptedLab, ScriptedTeam
from skillweave.reason.budget import Budget, Meter
from skillweave.reason.problem import Missing
from skillweave.reason.search.baselines import RexConfig, _draw
from skillweave.reason.search.direct import majority
from skillweave.reason.search.frame import SearchFrame
from skillweave.reason.search.methods import SEARCH_METHODS
from skillweave.reason.search.tree import Node

OUTPUTS = {"bad": [9, 9, 9, 9], "one": [0, 9, 9, 9], "two": [0, 1, 9, 9], "all": [0, 1, 2, 3]}
PROGRAMS = [name for name, method in SEARCH_METHODS.items() if method.search is not None]


def search(
    name: str, script: dict[str, list[str]], calls: int = 30, parallel: int = 1, **settings: object
) -> tuple[SearchFrame, ScriptedTeam, str, Meter]:
    meter = Meter(Budget(calls=calls))
    team = ScriptedTeam(script, meter)
    frame = SearchFrame(EXAMPLES, team, ScriptedLab(OUTPUTS), meter, parallel=parallel)
    method = SEARCH_METHODS[name]
    ended = asyncio.run(method.search(frame, method.config(**dict(method.defaults), **settings)))
    return frame, team, ended, meter


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("parallel", [1, 4])
def test_every_method_ends_solved_or_at_the_budget(name: str, parallel: int) -> None:
    frame, _, ended, meter = search(name, {"root": ["bad", "one", "all"]}, parallel=parallel)
    assert ended == "solved"
    assert frame.end(ended).programs == ("all",)
    frame, _, ended, meter = search(name, {"root": ["bad", "one"], "one": ["one", "bad"]}, calls=17, parallel=parallel)
    assert (ended, meter.calls) == ("budget", 17)
    assert frame.end(ended).programs == ("one",)


def test_refinement_goes_in_rounds_and_starts_again() -> None:
    script = {"root": ["bad", "one"], "one": ["two", "bad"], "two": ["bad"]}
    frame, team, _, _ = search("direct-python", script, calls=9, rounds=3, samples=2)
    parents = [node.parent for node in frame.tree.nodes[1:]]
    # Round 1: two proposals. Round 2: two refinements of "one" (node 2). Round 3: of "two" (node 3). Then again.
    assert parents == [0, 0, 2, 2, 3, 3, 0, 0, 7]
    assert [told[1] for told in team.told] == ["one", "one", "two", "two", "one"]


def test_the_best_of_a_round_is_refined_even_if_an_earlier_round_was_better() -> None:
    script = {"root": ["two"], "two": ["bad", "one"], "one": ["all"]}
    frame, *_ = search("direct-python", script, rounds=3, samples=2)
    assert [node.parent for node in frame.tree.nodes[1:]] == [0, 0, 1, 1, 4]


def test_rex_draws_from_the_beta_of_each_arm() -> None:
    node = Node(1, 0, "propose", coherent=0.75, children=[2, 3, 4])
    draws = random.Random(0)
    seen = np.array([_draw(node, RexConfig(), draws) for _ in range(4000)])
    alpha, beta = 1 + 20 * 0.75, 1 + 20 * 0.25 + 3
    assert seen.mean() == pytest.approx(alpha / (alpha + beta), abs=0.01)
    spread = np.sqrt(alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1)))
    assert seen.std() == pytest.approx(spread, abs=0.01)
    plain = np.array([_draw(node, RexConfig(count_failures=False), draws) for _ in range(4000)])
    assert plain.mean() == pytest.approx(16 / 22, abs=0.01)


def test_rex_mostly_refines_what_solves_most() -> None:
    script = {"root": ["one", "two", "bad"], "one": ["bad"], "two": ["bad"], "bad": ["bad"]}
    frame, *_ = search("rex", script, calls=30, count_failures=False)
    refined = Counter(node.parent for node in frame.tree.nodes[1:] if node.parent)
    best = max(refined, key=lambda number: refined[number])
    assert frame.tree[best].coherent == max(node.coherent for node in frame.tree.nodes)


def test_mixture_of_concepts_makes_a_program_of_each_distinct_rule() -> None:
    frame, _, _, meter = search("concepts", {"root": ["bad"]}, calls=10, concepts=3)
    # Each round: one call for three rules, three programs; the third round has two calls left.
    assert (meter.calls, len(frame.tree.nodes) - 1) == (10, 7)


def test_the_majority_is_the_most_frequent_value() -> None:
    assert majority([1, 2, 2]) == 2
    assert majority([1, 2]) == 1
    assert majority([Missing("a"), [1, 2], Missing("b"), [1, 2], 3]) == [1, 2]
    assert majority([True, 1, 1]) == 1
    assert isinstance(majority([]), Missing)
    assert majority([Missing("why")]).why == "why"
