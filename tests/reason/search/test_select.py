"""UCT selection, against a reference that recomputes everything from the list of rewards."""

from __future__ import annotations

import math
import random

import pytest

from skillweave.reason.hypothesis import Hypothesis
from skillweave.reason.search.prune import is_open
from skillweave.reason.search.select import node_value, select, uct
from skillweave.reason.search.tree import Node, Tree, backpropagate

SETTINGS = {"exploration": 0.8, "best_share": 0.3}


def test_uct_is_the_formula() -> None:
    assert uct(0.5, 4, 10, 1.4) == pytest.approx(0.5 + 1.4 * math.sqrt(math.log(10) / 4))
    assert uct(0.5, 0, 10, 1.4) == math.inf
    assert uct(0.5, 3, 0, 1.4) == 0.5  # ln of nothing is not asked for


def test_pending_expansions_lower_the_mean_but_not_the_maximum() -> None:
    node = Node(1, 0, "propose", visits=2, total=1.6, best=0.9, pending=2)
    assert node_value(node, 0.0) == pytest.approx(0.4)
    assert node_value(node, 1.0) == pytest.approx(0.9)
    assert node_value(node, 0.5) == pytest.approx((0.4 + 0.9) / 2)
    assert node_value(Node(1, 0, "propose"), 0.5) == 0.0


def reward_of(path: tuple[int, ...]) -> float:
    """A fixed reward for every place of an endless tree."""
    return random.Random(repr(path)).random()


def reference_visits(steps: int) -> dict[tuple[int, ...], int]:
    """Visits by place in the tree after so many steps, computed from the list of all rewards at every step."""
    rewards: dict[tuple[int, ...], float] = {}

    def below(place: tuple[int, ...]) -> list[float]:
        return [reward for path, reward in rewards.items() if path[: len(place)] == place]

    def ucb(value: float, count: int, place: tuple[int, ...]) -> float:
        return value + 0.8 * math.sqrt(math.log(len(below(place))) / count)

    for _ in range(steps):
        place: tuple[int, ...] = ()
        while True:
            children = [path for path in rewards if len(path) == len(place) + 1 and path[:-1] == place]
            own = [rewards[path] for path in children] + ([rewards[place]] if place else [])
            scores = {}
            if own:
                scores[place] = ucb(0.7 * sum(own) / len(own) + 0.3 * rewards.get(place, 0.0), len(own), place)
            for child in children:
                under = below(child)
                scores[child] = ucb(0.7 * sum(under) / len(under) + 0.3 * max(under), len(under), place)
            chosen = max(scores, key=lambda one: scores[one]) if scores else place
            if chosen == place:
                break
            place = chosen
        place = (*place, sum(len(path) == len(place) + 1 and path[:-1] == place for path in rewards))
        rewards[place] = reward_of(place)
    places = {path[:cut] for path in rewards for cut in range(len(path) + 1)}
    return {place: len(below(place)) for place in places}


def test_visits_match_the_reference() -> None:
    tree, places = Tree(), {0: ()}
    for _ in range(150):
        parent = select(tree, **SETTINGS, may_expand=is_open)
        node = tree.add(parent.number, "propose" if parent is tree.root else "refine")
        places[node.number] = (*places[parent.number], len(parent.children) - 1)
        node.hypothesis = Hypothesis("", "f")
        node.reward = reward_of(places[node.number])
        backpropagate(tree, node.number)
    assert {places[node.number]: node.visits for node in tree.nodes} == reference_visits(150)
    assert max(map(len, places.values())) >= 3  # the search went deep


def test_nodes_that_are_given_up_lead_nowhere() -> None:
    tree = Tree()
    for state, closed in (("equal", False), ("dominated", False), ("failed", False), ("open", True)):
        node = tree.add(0, "propose")
        node.hypothesis, node.state, node.closed = Hypothesis("", "f"), state, closed
        node.reward = 1.0
        backpropagate(tree, node.number)
    assert select(tree, **SETTINGS, may_expand=is_open) is tree.root
    child = tree.add(1, "refine")  # an open node below a pruned one can still be reached
    child.hypothesis, child.reward = Hypothesis("", "g"), 0.5
    backpropagate(tree, child.number)
    assert select(tree, exploration=0.0, best_share=0.0, may_expand=is_open) is tree.root
    assert select(tree, exploration=0.0, best_share=1.0, may_expand=is_open) is child


def test_expansions_in_flight_spread_out() -> None:
    tree = Tree()
    for _ in range(3):
        node = tree.add(0, "propose")
        node.hypothesis, node.reward = Hypothesis("", "f"), 0.5
        backpropagate(tree, node.number)
    chosen = []
    for _ in range(3):
        node = select(tree, exploration=0.1, best_share=1.0, may_expand=is_open)
        for above in tree.path(node.number):
            above.pending += 1
        node.growing += 1
        chosen.append(node.number)
    assert sorted(chosen) == [1, 2, 3]
