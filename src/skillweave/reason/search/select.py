"""Selection by UCT: which node is expanded next."""

from __future__ import annotations

import math
from collections.abc import Callable

from skillweave.reason.search.tree import Node, Tree


def uct(value: float, visits: int, parent_visits: int, exploration: float) -> float:
    """Q + c * sqrt(ln N_parent / N). Infinite for a node without visits.

    Source: Kocsis and Szepesvári, 2006 (UCT). ``visits`` and ``parent_visits`` include expansions in flight.
    """
    if visits == 0:
        return math.inf
    return value + exploration * math.sqrt(math.log(max(1, parent_visits)) / visits)


def node_value(node: Node, best_share: float) -> float:
    """Q of a node: its mean and its maximum, mixed: (1 - s) * mean + s * max.

    Expansions in flight count as rewards of zero in the mean (virtual loss), so that several workers spread out.
    """
    count = node.visits + node.pending
    mean = node.total / count if count else 0.0
    return (1 - best_share) * mean + best_share * node.best


def select(
    tree: Tree,
    *,
    exploration: float,
    best_share: float,
    width: float,
    growth: float,
    may_expand: Callable[[Node], bool],
) -> Node:
    """The node to expand: go down from the root until a node has room for one more child.

    A node has room while it has fewer than ``width * visits ** growth`` children, pending ones included (progressive
    widening), and ``may_expand`` allows it. Otherwise the child with the highest :func:`uct` is taken, among those that
    can be expanded or lead to such a node. The root can always be expanded, with a new proposal.
    """
    usable = _usable(tree, may_expand)
    node = tree.root
    while True:
        children = [tree[number] for number in node.children if number in usable]
        room = width * (node.visits + node.pending + 1) ** growth
        can_expand = node is tree.root or may_expand(node)
        if can_expand and (not children or len(node.children) + node.growing < room):
            return node
        visits = node.visits + node.pending
        # max() keeps the first of equal children, which is the earlier node.
        node = max(
            children,
            key=lambda child: uct(node_value(child, best_share), child.visits + child.pending, visits, exploration),
        )


def _usable(tree: Tree, may_expand: Callable[[Node], bool]) -> set[int]:
    """The nodes that can be expanded or have such a node below them."""
    usable: set[int] = set()
    for node in reversed(tree.nodes):  # children have higher numbers than their parents
        if may_expand(node) or any(child in usable for child in node.children):
            usable.add(node.number)
    return usable
