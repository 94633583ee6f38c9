"""Pruning and backtracking on hand-made trees."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.scripted_search import evaluation
from skillweave.reason.hypothesis import Hypothesis
from skillweave.reason.search.prune import backtrack, dominates, failures_at, merge_equal, prune_dominated
from skillweave.reason.search.tree import Node, Tree, backpropagate, best_node, solvers


def grow(tree: Tree, parent: int, outputs: Sequence[object], program: str = "f") -> Node:
    node = tree.add(parent, "refine" if parent else "propose")
    node.hypothesis, node.evaluation = Hypothesis("", program), evaluation(outputs)
    node.coherent = node.evaluation.coherent
    backpropagate(tree, node.number)
    return node


def test_domination_needs_every_pair_and_one_more() -> None:
    assert dominates(evaluation([0, 1, 9, 9]), evaluation([0, 9, 9, 9]))
    assert dominates(evaluation([0, 9, 9, 9]), evaluation([9, 9, 9, 9]))
    assert not dominates(evaluation([0, 1, 9, 9]), evaluation([0, 1, 8, 8]))
    assert not dominates(evaluation([0, 1, 2, 9]), evaluation([9, 9, 9, 3]))


def test_equal_behaviour_is_merged_into_the_first_node() -> None:
    tree = Tree()
    first, second, third = (grow(tree, 0, [0, 9, 9, 9], text) for text in ("a", "b", "c"))
    assert not merge_equal(tree, first)
    assert merge_equal(tree, second)
    assert merge_equal(tree, third)
    assert (second.state, second.equal_to, third.equal_to) == ("equal", first.number, first.number)


def test_a_new_node_dominates_and_is_dominated() -> None:
    tree = Tree()
    weak, other, strong = grow(tree, 0, [0, 9, 9, 9]), grow(tree, 0, [9, 9, 9, 3]), grow(tree, 0, [0, 1, 9, 9])
    assert prune_dominated(tree, strong) == [weak]
    assert (weak.state, weak.equal_to, other.state) == ("dominated", strong.number, "open")
    late = grow(tree, 0, [9, 1, 9, 9])
    assert prune_dominated(tree, late) == [late]


def test_backtracking_after_refinements_without_gain() -> None:
    tree = Tree()
    parent = grow(tree, 0, [0, 9, 9, 9])
    node = grow(tree, parent.number, [0, 1, 9, 9])
    prune_dominated(tree, node)
    assert parent.state == "dominated"
    one = grow(tree, node.number, [0, 1, 8, 8])
    assert backtrack(tree, node, 2) is None  # one refinement of two
    two = grow(tree, one.number, [9, 9, 2, 9])  # a refinement further below counts as well
    assert backtrack(tree, one, 2) is parent  # it is open again, because only a closed node dominated it
    assert (node.closed, one.closed, two.closed, parent.closed, parent.state) == (True, True, True, False, "open")
    assert failures_at(tree, parent, 2) == [node.hypothesis]
    assert backtrack(tree, node, 2) is None  # it is given up once


def test_a_gain_anywhere_below_keeps_a_node() -> None:
    tree = Tree()
    node = grow(tree, 0, [0, 9, 9, 9])
    child = grow(tree, node.number, [0, 8, 9, 9])
    grow(tree, node.number, [0, 7, 9, 9])
    grow(tree, child.number, [0, 1, 9, 9])
    assert backtrack(tree, child, 2) is None
    assert not node.closed


def test_the_search_returns_to_the_best_open_ancestor_and_at_last_to_the_root() -> None:
    tree = Tree()
    top = grow(tree, 0, [0, 1, 9, 9])
    middle = grow(tree, top.number, [0, 9, 9, 9])
    low = grow(tree, middle.number, [9, 9, 9, 9])
    grow(tree, low.number, [9, 9, 9, 8])
    assert backtrack(tree, low, 1) is tree.root  # the highest stalled node is given up, which is the top
    assert (top.closed, middle.closed, low.closed) == (True, True, True)
    tree = Tree()
    top = grow(tree, 0, [0, 1, 9, 9])
    better = grow(tree, top.number, [0, 1, 2, 9])
    grow(tree, better.number, [0, 9, 9, 9])
    assert backtrack(tree, better, 1) is top  # the top has gained
    assert (top.closed, better.closed) == (False, True)


def test_the_answer_is_the_most_coherent_then_the_shortest_then_the_earliest() -> None:
    tree = Tree()
    assert best_node(tree) is None
    grow(tree, 0, [None, None, None, None], "crash")
    assert best_node(tree) is None
    grow(tree, 0, [0, 1, 2, 9], "longer")
    short = grow(tree, 0, [0, 1, 9, 3], "short")
    grow(tree, 0, [9, 1, 2, 3], "abcde")
    assert best_node(tree) is short
    whole = grow(tree, 0, [0, 1, 2, 3], "the longest of all")
    twin = grow(tree, 0, [0, 1, 2, 3], "the longer of all")
    assert solvers(tree) == [twin, whole]
