"""Hindsight: the programs of a run become new training problems, each with an exact solution.

A program that was executed on the training inputs of its problem is the exact solution of the problem that its own
outputs define, even if it failed at the problem that was asked. Its rows teach the proposer; a refinement teaches the
refiner to go from its parent to it. Idea: SOAR (arXiv 2507.14172).

Nothing of a test pair enters: only training inputs and outputs of executed programs are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillweave.artefact import write_json_lines
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.files.parse_json import parse_json
from skillweave.progress import share_of
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.prompt_values import failure_texts, pair_texts
from skillweave.reason.hypothesis import Evaluation
from skillweave.reason.problem import ExamplePairs, IOPair
from skillweave.reason.trace import SearchTrace, TracedNode
from skillweave.tasks.verifiers.code_result import same_result


@dataclass
class Harvest:
    """The rows of a harvest, and what was left out.

    - ``rows``: ``prompt``, ``answer``, ``kind`` (``program`` or ``refine``)
    - ``executed``: programs that were looked at
    - ``failing``: those that gave no value for some training input
    - ``trivial``: those whose outputs are all equal, or equal to the inputs
    - ``alike``: those that behave like a shorter one on the same inputs
    - ``beyond``: those beyond the most for each problem
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    executed: int = 0
    failing: int = 0
    trivial: int = 0
    alike: int = 0
    beyond: int = 0

    @property
    def left_out(self) -> list[str]:
        """One line for each reason why programs were left out."""
        reasons = {
            "they failed on a training input": self.failing,
            "their outputs are all equal, or equal to the inputs": self.trivial,
            "they behave like a shorter one": self.alike,
            "their problem has enough": self.beyond,
        }
        return [f"{share_of(n, self.executed, 'programs')} left out: {why}" for why, n in reasons.items() if n]


@dataclass(frozen=True)
class _Found:
    """A program and the problem that its outputs define."""

    node: TracedNode
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]

    @property
    def problem(self) -> ExamplePairs:
        return ExamplePairs("harvested", tuple(map(IOPair, self.inputs, self.outputs)))


def harvest(traces: Iterable[SearchTrace], prompts: PromptSet, *, most: int = 16) -> Harvest:
    """Training rows from the executed programs of a run; at most ``most`` programs for each problem.

    Of a problem's programs, those that solve more of its training pairs are taken first, and the shorter ones of these.
    """
    result = Harvest()
    known: set[str] = set()
    for trace in traces:
        inputs = tuple(parse_json(pair.input, f"an input of {trace.problem}") for pair in trace.pairs)
        executed = [node for node in trace.nodes if node.outcomes]
        result.executed += len(executed)
        taken = 0
        for node in sorted(executed, key=lambda one: (-one.coherent, len(one.program), one.number)):
            outputs = _outputs(node)
            if outputs is None:
                result.failing += 1
                continue
            found = _Found(node, inputs, outputs)
            if _is_trivial(found):
                result.trivial += 1
            elif (key := digest([found.inputs, found.outputs])) in known:
                result.alike += 1
            elif taken == most:
                result.beyond += 1
            else:
                known.add(key)
                taken += 1
                result.rows += _rows(found, trace.nodes, prompts)
    return result


def write_harvest(path: Path, found: Harvest) -> None:
    """Write the rows as JSONL, in the form that ``task: {source: file}`` of a weave.yaml reads."""
    write_json_lines(path, found.rows)


def _rows(found: _Found, nodes: Sequence[TracedNode], prompts: PromptSet) -> list[dict[str, str]]:
    """The row of the program, and if it was refined from a program that gives other outputs, the row of that step."""
    problem, program = found.problem, found.node.program
    asked = prompts.render("propose_program", pairs=pair_texts(problem), avoid=[])
    rows = [{"prompt": asked, "answer": program, "kind": "program"}]
    parent = None if found.node.parent is None else nodes[found.node.parent]
    outputs = None if parent is None else _outputs(parent)
    if found.node.action == "refine" and parent is not None and outputs is not None:
        solved = tuple(same_result(one, other) for one, other in zip(outputs, found.outputs, strict=True))
        if not all(solved):
            refine = prompts.render(
                "refine_program",
                pairs=pair_texts(problem),
                rule=parent.rule,
                program=parent.program,
                failures=failure_texts(problem, Evaluation(outputs, solved, "")),
                note="",
                failed=[],
            )
            rows.append({"prompt": refine, "answer": program, "kind": "refine"})
    return rows


def _outputs(node: TracedNode) -> tuple[Any, ...] | None:
    """What a program gave for the training inputs; None if it failed on one, or gave text that no file can hold."""
    if not node.ran:
        return None
    try:
        return tuple(parse_json(outcome, f"an output of node {node.number}") for outcome in node.outcomes)
    except UserError:
        return None


def _is_trivial(found: _Found) -> bool:
    first = found.outputs[0]
    constant = len(found.outputs) > 1 and all(same_result(output, first) for output in found.outputs)
    return constant or all(map(same_result, found.outputs, found.inputs))
