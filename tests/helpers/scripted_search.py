"""A team and a lab without a model and a sandbox: hypotheses are names in a known tree, with known outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from skillweave.reason.budget import BudgetSpent, Meter
from skillweave.reason.hypothesis import Evaluation, Hypothesis, Judgement, Note, Proposal
from skillweave.reason.problem import ExamplePairs, IOPair, Missing
from skillweave.reason.trace import AgentCounts

EXAMPLES = ExamplePairs("scripted", tuple(IOPair(number, number) for number in range(4)))


class ScriptedTeam:
    """Takes proposals and refinements from lists: ``script["root"]`` for proposals, ``script[name]`` for refinements.

    When a list ends, its last name comes again. ``told`` records what the refiner was told.
    """

    def __init__(self, script: dict[str, list[str]], meter: Meter, *, seed: int = 0) -> None:
        self._script = script
        self._meter = meter
        self._seed = seed
        self._next: dict[str, int] = {}
        self.told: list[tuple[str, str, str | None, list[str]]] = []
        self.criticised: list[str] = []
        self.counts: dict[str, AgentCounts] = {}

    def seed_of(self, key: str) -> int:
        return int(hashlib.sha256(f"{self._seed}/{key}".encode()).hexdigest()[:8], 16)

    def _pay(self) -> None:
        if not self._meter.reserve():
            raise BudgetSpent
        self._meter.charge(10)

    def _take(self, name: str) -> Proposal:
        self._pay()
        names = self._script.get(name, ["bad"])
        place = self._next.get(name, 0)
        self._next[name] = place + 1
        made = names[min(place, len(names) - 1)]
        if made == "unreadable":
            return Proposal(None, "no program was found")
        return Proposal(Hypothesis(f"rule {made} {place}", made))

    async def propose(self, key: str, avoid: Sequence[Hypothesis] = ()) -> Proposal:
        return self._take("root")

    async def refine(
        self,
        key: str,
        hypothesis: Hypothesis,
        evaluation: Evaluation,
        note: Note | None = None,
        failed: Sequence[Hypothesis] = (),
    ) -> Proposal:
        self.told.append((key, hypothesis.program, note and note.text, [one.program for one in failed]))
        return self._take(hypothesis.program)

    async def criticise(self, key: str, hypothesis: Hypothesis, evaluation: Evaluation) -> Note | None:
        self._pay()
        self.criticised.append(hypothesis.program)
        return Note(f"part of {hypothesis.program}", "it fails")

    async def judge(self, key: str, hypothesis: Hypothesis, parent: Hypothesis | None) -> Judgement | None:
        self._pay()
        return Judgement(0.25, True)

    async def concepts(self, key: str, count: int, avoid: Sequence[str] = ()) -> list[str]:
        self._pay()
        return [f"concept {len(avoid) + number}" for number in range(count)]

    async def code(self, key: str, rule: str) -> Proposal:
        return self._take("root")


class ScriptedLab:
    """Evaluates by a table: a name to its outputs for the inputs 0 to 3; the right output equals the input.

    Names that end in an apostrophe behave like the name without it: they are rephrasings.
    """

    def __init__(self, outputs: dict[str, Sequence[object]]) -> None:
        self._outputs = outputs
        self.evaluated: list[str] = []

    async def evaluate(self, program: str, examples: ExamplePairs) -> Evaluation:
        self.evaluated.append(program)
        return evaluation(self._outputs[program.rstrip("'")])


def evaluation(outputs: Sequence[object], behaviour: str | None = None) -> Evaluation:
    """The evaluation of a program with these outputs on the inputs 0 to 3; None is a failure."""
    values = tuple(Missing("it raised") if value is None else value for value in outputs)
    solved = tuple(value == number for number, value in enumerate(outputs))
    return Evaluation(values, solved, behaviour or repr(list(outputs)))
