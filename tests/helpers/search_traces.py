"""Plausible traces of searches, made up with a seed: for the tests of the page and of the live view."""

from __future__ import annotations

import random

from skillweave.reason.trace import AgentCounts, SearchTrace, TracedNode, TracedPair, TracedTest

RULES = (
    ("Drop the first element, then double what is left.", "def f(x):\n    return [2 * v for v in x[1:]]\n"),
    (
        "Keep the elements that are larger than their index, in reverse order.",
        "def f(x):\n    kept = [v for i, v in enumerate(x) if v > i]\n    return kept[::-1]\n",
    ),
    ("Remove duplicates; keep the first of each.", "def f(x):\n    return list(dict.fromkeys(x))\n"),
    (
        "If the list has more than three elements, sort it and drop the largest; else repeat its last one twice.",
        "def f(x):\n    if len(x) > 3:\n        return sorted(x)[:-1]\n    return x + x[-1:] * 2\n",
    ),
    (
        "Replace each element by the sum of all elements before it.",
        "def f(x):\n    return [sum(x[:i]) for i in range(len(x))]\n",
    ),
)
NOTES = (
    "the condition on the length: pair 3 has exactly three elements, and the wanted output is sorted as well",
    "the order: pair 5 keeps the order of the input, but the rule reverses it",
    "",
)
FAILURES = (
    "no Python code block in the answer, also after one repair: 'Let me think about the examples again ...'",
    "line 3: SyntaxError: '(' was never closed",
)


def made_up_trace(
    name: str = "list-042",
    *,
    nodes: int = 45,
    pairs: int = 6,
    seed: int = 0,
    solves: bool = True,
    family: str = "lists",
) -> SearchTrace:
    """A trace of MATSIR with every state among its nodes if there are 20 or more."""
    draw = random.Random(seed)
    inputs = [[draw.randrange(10) for _ in range(draw.randrange(2, 9))] for _ in range(pairs)]
    tree = [TracedNode(number=0, parent=None, action="root", visits=nodes, reward=0.0)]
    for number in range(1, nodes):
        tree.append(_node(draw, tree, number, inputs))
    live = [node for node in tree[1:] if node.state == "open"]
    best = max(live, key=lambda node: (sum(node.solved), -node.number), default=None)
    if best is not None and best.solved and solves:
        best = best.model_copy(
            update=_result(inputs, pairs, 1.0, 0.6) | {"state": "solved", "equal_to": None, "failure": ""}
        )
        tree[best.number] = best
    answer = [best.number] if best is not None and best.program else []
    right = [solves or draw.random() < 0.3 for _ in range(4)]
    calls = tree[-1].calls + 1
    return SearchTrace(
        problem=name,
        family=family,
        method="matsir",
        seed=seed,
        pairs=[TracedPair(input=str(value), output=str(sorted(value)[:-1])) for value in inputs],
        nodes=tree,
        ended="solved" if solves else "budget",
        answer=answer,
        calls=calls,
        tokens=calls * 412,
        seconds=round(calls * 0.31, 2),
        agents={
            "proposer": AgentCounts(calls=calls // 4, tokens=calls * 100, repaired=1, failed=1),
            "refiner": AgentCounts(calls=calls // 2, tokens=calls * 200, repaired=2, failed=1, cut_off=1),
            "critic": AgentCounts(calls=calls - calls // 4 - calls // 2, tokens=calls * 112),
        },
        tests=[TracedTest(input=str(inputs[0]), predicted=str(sorted(inputs[0])), right=ok) for ok in right],
        raw=sum(right) / 4,
        task=float(all(right)),
    )


def _node(draw: random.Random, tree: list[TracedNode], number: int, inputs: list[list[int]]) -> TracedNode:
    live = [node for node in tree if node.state == "open" and not node.backtracked]
    parent = tree[0] if number <= 3 or draw.random() < 0.12 else draw.choice(live[-6:])
    state = {1: "open", 2: "open", 7: "failed", 11: "equal", 12: "open", 15: "dominated"}.get(number) or draw.choices(
        ("open", "equal", "dominated", "failed"), (70, 12, 12, 6)
    )[0]
    common = {
        "number": number,
        "parent": parent.number,
        "action": "propose" if parent.number == 0 else "refine",
        "visits": max(1, draw.randrange(60 // (number + 1) + 2)),
        "calls": 2 * number,
        "tokens": 823 * number,
    }
    if state == "failed":
        return TracedNode(**common, state="failed", failure=draw.choice(FAILURES))
    rule, program = draw.choice(RULES)
    coherent = min(1.0, max(0.0, parent.coherent + draw.choice((-1, 0, 0, 1, 1, 2)) / len(inputs)))
    coherent = min(coherent, (len(inputs) - 1) / len(inputs))
    result = _result(inputs, round(coherent * len(inputs)), coherent, draw.random() if state == "open" else 0.0)
    return TracedNode(
        **common,
        **result,
        rule=rule,
        program=program,
        state=state,
        equal_to=draw.randrange(1, number) if state != "open" else None,
        backtracked=number in (12, 25) and state == "open",
        note=draw.choice(NOTES),
        mean=round(draw.random() * result["reward"], 3),
        best=result["reward"],
    )


def _result(inputs: list[list[int]], solved: int, coherent: float, enriched: float) -> dict:
    right = [at < solved for at in range(len(inputs))]
    return {
        "solved": right,
        "outcomes": [
            str(sorted(value)[:-1]) if ok else "IndexError: list index out of range" if at == 4 else str(value[::-1])
            for at, (value, ok) in enumerate(zip(inputs, right, strict=True))
        ],
        "coherent": coherent,
        "enriched": enriched,
        "reward": round(0.7 * coherent + 0.3 * enriched, 4),
    }
