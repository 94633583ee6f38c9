"""Nodes and pairs as they are written to a trace: plain texts and numbers."""

from __future__ import annotations

import json

from skillweave.reason.problem import ExamplePairs, Missing, Value
from skillweave.reason.search.tree import Node
from skillweave.reason.trace import TracedNode, TracedPair


def traced_node(node: Node) -> TracedNode:
    """The record of a node."""
    evaluation = node.evaluation
    return TracedNode(
        number=node.number,
        parent=node.parent,
        action=node.action,
        rule=node.hypothesis.rule if node.hypothesis else "",
        program=node.hypothesis.program if node.hypothesis else "",
        outcomes=[shown(outcome) for outcome in evaluation.outcomes] if evaluation else [],
        ran=evaluation is not None and not any(isinstance(outcome, Missing) for outcome in evaluation.outcomes),
        solved=list(evaluation.solved) if evaluation else [],
        coherent=node.coherent,
        enriched=node.enriched,
        reward=node.reward,
        visits=node.visits,
        mean=node.mean,
        best=node.best,
        state=node.state,
        equal_to=node.equal_to,
        backtracked=node.closed,
        note=node.note.text if node.note else "",
        failure=node.failure,
        calls=node.calls,
        tokens=node.tokens,
    )


def traced_pairs(examples: ExamplePairs) -> list[TracedPair]:
    """The training pairs as texts."""
    return [TracedPair(input=shown(pair.input), output=shown(pair.output)) for pair in examples.pairs]


def shown(value: Value | Missing) -> str:
    """A value as JSON, or the reason why there is none."""
    return value.why if isinstance(value, Missing) else json.dumps(value, ensure_ascii=False)
