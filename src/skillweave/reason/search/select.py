"""Selection by UCT: which node is expanded next."""

from __future__ import annotations

import math
from collections.abc import Callable

from skillweave.reason.search.tree import Node, Tree


def uct(value: float, visits: int, parent_visits: int, exploration: float) -> float:
    """Q + c * sqrt(ln N_parent / N). Infinite for a node without visits.

    Source: Kocsis and Szepesvári, 2006 (UCT) [relative]. ``visits`` and ``parent_visits`` include expansions in flight.
    """
    if visits == 0:
        return math.inf
    return value + exploration * math.sqrt(math.log(max(1, parent_visits)) / visits)


def node_value(node: Node, best_share: float) -> float:
    """Q of a node: its mean and its maximum, mixed: (1 - s) * mean + s * max [ours].

    Expansions in flight count as rewards of zero in the mean (virtual loss), so that several workers spread out.
    """
    count = node.visits + node.pending
    mean = node.total / count if count else 0.0
    return (1 - best_share) * mean + best_share * node.best


def expansion_value(tree: Tree, node: Node, best_share: float) -> float:
    """Q of expanding the node itself: what its reward, and the rewards of its children so far, promise of a new child.

    The mean is over its own reward (the root has none) and those of its children; expansions in flight count as zero.
    The maximum's place is taken by its own reward.
    """
    rewards = [tree[number].reward for number in node.children]
    if node.parent is not None:
        rewards.append(node.reward)
    count = len(rewards) + node.growing
    mean = sum(rewards) / count if count else 0.0
    return (1 - best_share) * mean + best_share * node.reward


def select(tree: Tree, *, exploration: float, best_share: float, may_expand: Callable[[Node], bool]) -> Node:
    """The node to expand: go down from the root until expanding a node promises more than any of its children.

    At each node, the highest :func:`uct` decides between the children that can be expanded or lead to such a node, and
    the node itself, if ``may_expand`` allows it; the root can always be expanded, with a new proposal. Ties go to the
    node itself, then to the earlier child.
    """
    usable = _usable(tree, may_expand)
    node = tree.root
    while True:
        visits = node.visits + node.pending
        best, chosen = -math.inf, node
        if node is tree.root or may_expand(node):
            tries = len(node.children) + node.growing + (node.parent is not None)
            best = uct(expansion_value(tree, node, best_share), tries, visits, exploration)
        for child in (tree[number] for number in node.children if number in usable):
            score = uct(node_value(child, best_share), child.visits + child.pending, visits, exploration)
            if score > best:
                best, chosen = score, child
        if chosen is node:
            return node
        node = chosen


def _usable(tree: Tree, may_expand: Callable[[Node], bool]) -> set[int]:
    """The nodes that can be expanded or have such a node below them."""
    usable: set[int] = set()
    for node in reversed(tree.nodes):  # children have higher numbers than their parents
        if may_expand(node) or any(child in usable for child in node.children):
            usable.add(node.number)
    return usable
