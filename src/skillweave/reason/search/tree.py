"""The tree of one search: its nodes, and what is counted along a path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from skillweave.reason.hypothesis import Evaluation, Hypothesis, Note
from skillweave.reason.trace import Action, State


@dataclass
class Node:
    """A hypothesis with its outcome. Node 0 is the root: the problem with no hypothesis.

    - ``coherent``, ``enriched``, ``reward``: see :mod:`~skillweave.reason.search.rewards`
    - ``visits``, ``total``, ``best``: how many rewards were backpropagated through the node, their sum, and the highest
    - ``pending``: expansions of it or below it that have not come back yet (virtual loss)
    - ``growing``: expansions of the node itself that have not come back yet
    - ``closed``: the search gave up below it and went back to an ancestor
    """

    number: int
    parent: int | None
    action: Action
    hypothesis: Hypothesis | None = None
    evaluation: Evaluation | None = None
    coherent: float = 0.0
    enriched: float = 0.0
    reward: float = 0.0
    visits: int = 0
    total: float = 0.0
    best: float = 0.0
    pending: int = 0
    growing: int = 0
    children: list[int] = field(default_factory=list)
    state: State = "open"
    equal_to: int | None = None
    closed: bool = False
    note: Note | None = None
    failure: str = ""
    calls: int = 0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """The mean of the rewards that were backpropagated through the node; 0 before the first."""
        return self.total / self.visits if self.visits else 0.0


class Tree:
    """All nodes of one search, by number."""

    def __init__(self) -> None:
        self.nodes: list[Node] = [Node(0, None, "root")]

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    @property
    def root(self) -> Node:
        return self.nodes[0]

    @property
    def hypotheses(self) -> list[Node]:
        """The nodes with a hypothesis that was executed, in the order in which they were made."""
        return [node for node in self.nodes if node.evaluation is not None]

    def add(self, parent: int, action: Action) -> Node:
        """Add a node below ``parent`` and return it."""
        node = Node(len(self.nodes), parent, action)
        self.nodes.append(node)
        self.nodes[parent].children.append(node.number)
        return node

    def path(self, number: int) -> Iterator[Node]:
        """The node and its ancestors, up to the root."""
        at: int | None = number
        while at is not None:
            yield self.nodes[at]
            at = self.nodes[at].parent

    def siblings(self, node: Node) -> list[Node]:
        """The other children of a node's parent."""
        assert node.parent is not None
        return [self.nodes[other] for other in self.nodes[node.parent].children if other != node.number]

    def below(self, number: int) -> Iterator[Node]:
        """The descendants of a node, without the node itself."""
        for child in self.nodes[number].children:
            yield self.nodes[child]
            yield from self.below(child)


def backpropagate(tree: Tree, number: int) -> None:
    """Add the reward of a new node to the node itself and to all its ancestors: its mean and its maximum."""
    reward = tree[number].reward
    for node in tree.path(number):
        node.visits += 1
        node.total += reward
        node.best = max(node.best, reward)


def best_node(tree: Tree) -> Node | None:
    """The node that answers: most training pairs solved, then the shorter program, then the earlier node."""
    ran = [node for node in tree.hypotheses if node.evaluation is not None and node.evaluation.ran]
    return min(ran, key=_rank, default=None)


def _rank(node: Node) -> tuple[float, int, int]:
    assert node.evaluation is not None
    assert node.hypothesis is not None
    return -node.evaluation.coherent, len(node.hypothesis.program), node.number


def solvers(tree: Tree) -> list[Node]:
    """The nodes that solve all training pairs, the best first; nodes of equal behaviour are all among them."""
    solved = [node for node in tree.hypotheses if node.evaluation is not None and node.evaluation.coherent == 1.0]
    return sorted(solved, key=_rank)


def executed(node: Node) -> tuple[Hypothesis, Evaluation]:
    """The hypothesis and the evaluation of a node that can be refined."""
    assert node.hypothesis is not None
    assert node.evaluation is not None
    return node.hypothesis, node.evaluation
