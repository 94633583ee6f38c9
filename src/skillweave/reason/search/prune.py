"""Pruning and backtracking: which nodes the search gives up."""

from __future__ import annotations

from skillweave.reason.hypothesis import Evaluation, Hypothesis
from skillweave.reason.search.tree import Node, Tree

PRUNED = ("equal", "dominated", "failed")
"""States of nodes that are not refined."""


def merge_equal(tree: Tree, node: Node) -> bool:
    """Mark a new node as ``equal`` if an earlier node behaves alike on all training and probe inputs.

    Only the earlier one is refined further. Returns whether it was marked.
    """
    assert node.evaluation is not None
    for other in tree.hypotheses:
        assert other.evaluation is not None
        if other.number < node.number and other.evaluation.behaviour == node.evaluation.behaviour:
            node.state, node.equal_to = "equal", other.number if other.equal_to is None else other.equal_to
            return True
    return False


def prune_dominated(tree: Tree, node: Node) -> list[Node]:
    """Mark open nodes as ``dominated`` if another open or solved node solves all their training pairs and more.

    ``node`` is new: it may be dominated itself, or dominate others. Returns the nodes that were marked. A node that was
    given up (``closed``) dominates nothing, because it is not refined any more.
    """
    marked = []
    for other in tree.hypotheses:
        if other is node or other.closed or other.state not in ("open", "solved"):
            continue
        for loser, winner in ((node, other), (other, node)):
            if loser.state == "open" and dominates(winner.evaluation, loser.evaluation):
                loser.state, loser.equal_to = "dominated", winner.number
                marked.append(loser)
    return marked


def dominates(one: Evaluation | None, other: Evaluation | None) -> bool:
    """Whether one hypothesis solves every training pair that the other solves, and at least one more."""
    if one is None or other is None:
        return False
    pairs = list(zip(one.solved, other.solved, strict=True))
    return all(mine or not theirs for mine, theirs in pairs) and any(mine and not theirs for mine, theirs in pairs)


def backtrack(tree: Tree, node: Node, patience: int) -> Node | None:
    """Give up the trajectory through a node if it has stalled, and return where the search continues.

    ``node`` was just refined. A node has stalled if ``patience`` refinements of it and of nodes below it brought no
    gain: a descendant that solves more training pairs than it does. The highest stalled node on the path to the root is
    closed with all open nodes below it, and nodes that only these dominated are opened again. The search continues from
    the best ancestor that is open: the one that solves most training pairs, and of equal ones the nearest; at last from
    the root. None if nothing was given up.
    """
    stalled = [one for one in tree.path(node.number) if _has_stalled(tree, one, patience)]
    if not stalled:
        return None
    top = stalled[-1]
    lost = [top, *(other for other in tree.below(top.number) if other.state == "open")]
    for other in lost:
        other.closed = True
    _reopen(tree, {other.number for other in lost})
    assert top.parent is not None
    above = [other for other in tree.path(top.parent) if other.parent is None or is_open(other)]
    return max(above, key=lambda other: other.coherent)  # max() keeps the first, which is the nearest


def _has_stalled(tree: Tree, node: Node, patience: int) -> bool:
    # Each node below it was a refinement, and brought one visit; its own reward was the first visit.
    return node.parent is not None and not node.closed and node.visits - 1 >= patience and not gained(tree, node)


def gained(tree: Tree, node: Node) -> bool:
    """Whether any descendant solves more training pairs than the node."""
    return any(other.coherent > node.coherent for other in tree.below(node.number))


def _reopen(tree: Tree, closed: set[int]) -> None:
    """Open nodes again that only a closed node dominated."""
    for node in tree.nodes:
        if node.state == "dominated" and node.equal_to in closed:
            node.state, node.equal_to = "open", None


def is_open(node: Node) -> bool:
    """Whether a hypothesis may be refined."""
    return node.hypothesis is not None and node.state == "open" and not node.closed


def failures_at(tree: Tree, node: Node, most: int) -> list[Hypothesis]:
    """What already failed at a node: its latest children that were given up, at most so many."""
    given_up = [child for number in node.children if (child := tree[number]).closed or child.state in PRUNED]
    return [child.hypothesis for child in given_up if child.hypothesis is not None][::-1][:most]
