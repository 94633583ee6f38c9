"""A trace as the page needs it: texts cut and harmless, nodes placed, states in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skillweave.progress import share_of
from skillweave.reason.page.layout import tidy_layout
from skillweave.reason.trace import SearchTrace, TracedNode
from skillweave.terminal import harmless

ENDED_WORDS: Mapping[str, str] = {
    "solved": "solved",
    "budget": "budget spent",
    "stuck": "nothing left to try",
    "model": "unfinished (model lost)",
}
"""Why a search ended, in the words of the page."""

_LONGEST_PROGRAM = 4_000
_LONGEST_WORDS = 1_000  # a rule, a note, a failure
_LONGEST_VALUE = 600  # an input, an output, an outcome


@dataclass
class Cutter:
    """Makes texts of models and files fit for the page, and counts what it cuts."""

    texts: int = 0
    cut: int = 0
    characters_cut: int = 0

    def __call__(self, text: str, longest: int) -> str:
        """The text without steering characters; a longer one than ``longest`` is cut, with a note of how much."""
        self.texts += 1
        if len(text) <= longest:
            return harmless(text)
        left_out = len(text) - longest
        self.cut += 1
        self.characters_cut += left_out
        return f"{harmless(text[:longest])}… ({left_out:,} of {len(text):,} characters cut)"

    def note(self) -> str | None:
        """A sentence about what was cut; None if nothing was."""
        if not self.cut:
            return None
        return (
            f"{share_of(self.cut, self.texts, 'texts')} are cut in this page, together by {self.characters_cut:,} "
            "characters. The traces in the run's folder have them whole."
        )


@dataclass(frozen=True)
class Row:
    """One problem in the table."""

    number: int
    name: str
    family: str
    trained: int
    pairs: int
    right: int
    tests: int
    calls: int
    tokens: int
    ended: str
    drawn: bool = field(default=True)

    @property
    def ended_words(self) -> str:
        return ENDED_WORDS[self.ended]


def table_row(number: int, trace: SearchTrace, cutter: Cutter, *, drawn: bool) -> Row:
    """The row of a problem. ``drawn``: whether its tree is in the page."""
    return Row(
        number=number,
        name=cutter(trace.problem, _LONGEST_VALUE),
        family=cutter(trace.family, _LONGEST_VALUE),
        trained=pairs_solved(trace.nodes),
        pairs=len(trace.pairs),
        right=sum(test.right for test in trace.tests),
        tests=len(trace.tests),
        calls=trace.calls,
        tokens=trace.tokens,
        ended=trace.ended,
        drawn=drawn,
    )


def pairs_solved(nodes: Sequence[TracedNode]) -> int:
    """The most training pairs that one program solves."""
    return max((sum(node.solved) for node in nodes), default=0)


def drawn_tree(trace: SearchTrace, cutter: Cutter) -> dict[str, Any]:
    """The tree and what belongs to it, as plain data for the script of the page and for its list."""
    place: dict[int | None, int] = {node.number: index for index, node in enumerate(trace.nodes)}
    # A parent that is not an earlier node can only come from a broken file. Such a node is drawn as a tree of its own.
    parents = [_earlier(place.get(node.parent), index) for index, node in enumerate(trace.nodes)]
    layout = tidy_layout(parents)
    way = _ancestors([place[number] for number in trace.answer if number in place], parents)
    given_up: list[bool] = []
    for node, parent in zip(trace.nodes, parents, strict=True):
        given_up.append(node.backtracked or (parent is not None and given_up[parent]))
    return {
        "name": cutter(trace.problem, _LONGEST_VALUE),
        "pairs": [[cutter(pair.input, _LONGEST_VALUE), cutter(pair.output, _LONGEST_VALUE)] for pair in trace.pairs],
        "tests": [
            [cutter(test.input, _LONGEST_VALUE), cutter(test.predicted, _LONGEST_VALUE), test.right]
            for test in trace.tests
        ],
        "agents": [
            [cutter(name, _LONGEST_VALUE), counts.calls, counts.tokens, counts.repaired, counts.failed, counts.cut_off]
            for name, counts in trace.agents.items()
        ],
        "nodes": [
            {
                **_node(node, cutter),
                "parent": parents[index],
                "column": layout[index][0],
                "row": round(layout[index][1], 3),
                "given_up": given_up[index],
                "answer": node.number in trace.answer,
                "on_way": index in way,
                "of_pairs": len(trace.pairs),
            }
            for index, node in enumerate(trace.nodes)
        ],
    }


def _node(node: TracedNode, cutter: Cutter) -> dict[str, Any]:
    return {
        "number": node.number,
        "state": node.state,
        "made": made_words(node),
        "fate": fate_words(node),
        "backtracked": node.backtracked,
        "equal_to": node.equal_to,
        "root": node.action == "root",
        "rule": cutter(node.rule, _LONGEST_WORDS),
        "program": cutter(node.program, _LONGEST_PROGRAM),
        "outcomes": [cutter(outcome, _LONGEST_VALUE) for outcome in node.outcomes],
        "solved": node.solved,
        "coherent": round(node.coherent, 4),
        "enriched": round(node.enriched, 4),
        "reward": round(node.reward, 4),
        "visits": node.visits,
        "mean": round(node.mean, 4),
        "best": round(node.best, 4),
        "note": cutter(node.note, _LONGEST_WORDS),
        "failure": cutter(node.failure, _LONGEST_WORDS),
        "calls": node.calls,
        "tokens": node.tokens,
    }


def made_words(node: TracedNode) -> str:
    """How a node was made, as a sentence."""
    match node.action:
        case "root":
            return "This is the problem, without a hypothesis."
        case "propose":
            return "It was proposed from the examples."
        case "refine":
            return f"It was refined from node {node.parent}."
        case "answer":
            return "The model answered the test inputs directly."


def fate_words(node: TracedNode) -> list[str]:
    """What the search decided about a node, as sentences."""
    said = {
        "open": [],
        "solved": ["It solves every training pair."],
        "equal": [f"It behaves like node {node.equal_to}, so it was merged into that node."],
        "dominated": [f"It was pruned: node {node.equal_to} solves all its pairs and more."],
        "failed": ["It failed: the agent's answer held no program that could be read."],
    }[node.state]
    if node.backtracked:
        said = [*said, "The search gave up below it and went back to an ancestor."]
    return said


def _earlier(parent: int | None, index: int) -> int | None:
    return parent if parent is not None and parent < index else None


def _ancestors(nodes: Sequence[int], parents: Sequence[int | None]) -> set[int]:
    """The nodes and all their ancestors."""
    found: set[int] = set()
    for start in nodes:
        node: int | None = start
        while node is not None and node not in found:
            found.add(node)
            node = parents[node]
    return found
