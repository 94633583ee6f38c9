"""The frame in which every search runs: it expands nodes, executes hypotheses, keeps the budget and the record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from skillweave.files.hashes import digest
from skillweave.reason.agents.team import AgentTeam
from skillweave.reason.budget import Budget, BudgetSpent, Meter
from skillweave.reason.hypothesis import Evaluation, Hypothesis, Proposal
from skillweave.reason.lab import Lab
from skillweave.reason.models.model import ModelUnreachable
from skillweave.reason.problem import ExamplePairs
from skillweave.reason.search.record import traced_node
from skillweave.reason.search.tree import Node, Tree, best_node, solvers
from skillweave.reason.solution import Best, Ended, Solution
from skillweave.reason.trace import Action, TracedNode

_MOST_CALLS = 6  # critic, refiner and coder, each repaired once


class Watcher(Protocol):
    """Is told about a search while it runs."""

    def update(self, name: str, nodes: Sequence[TracedNode], calls: int, tokens: int, budget: Budget) -> None:
        """The tree has grown."""
        ...


@dataclass(frozen=True)
class Expansion:
    """A node to be added: its parent, and the agent's work that makes its hypothesis."""

    parent: int
    action: Action
    work: Callable[[], Awaitable[Proposal]]


class SearchFrame:
    """One search for the rule behind ``examples``.

    - ``parallel``: the most expansions in flight at once
    - ``votes``: the search ends as soon as so many nodes solve all training pairs, and these vote on the outputs
    """

    def __init__(
        self,
        examples: ExamplePairs,
        team: AgentTeam,
        lab: Lab,
        meter: Meter,
        *,
        parallel: int = 4,
        votes: int = 1,
        watcher: Watcher | None = None,
    ) -> None:
        self.examples = examples
        self.team = team
        self.tree = Tree()
        self.parallel = parallel
        self._lab = lab
        self._meter = meter
        self._votes = votes
        self._watcher = watcher
        self._course: list[Best] = []
        self._refined: Counter[str] = Counter()
        self._proposed = 0

    def propose_key(self) -> str:
        """The key of the next proposal."""
        self._proposed += 1
        return f"propose/{self._proposed}"

    def refine_key(self, hypothesis: Hypothesis) -> str:
        """The key of the next refinement of a program.

        It counts the refinements of this text alone. So two searches that refine the same program draw the same samples
        (which makes their comparison sharper), and one that refines it again draws a new one.
        """
        self._refined[hypothesis.program] += 1
        return f"refine/{digest(hypothesis.program)}/{self._refined[hypothesis.program]}"

    @property
    def wave(self) -> int:
        """How many expansions may begin now: :attr:`parallel`, fewer near the end of the budget, 0 when it is spent.

        One expansion may take several calls (critic, coder, repairs). Near the end fewer begin at once, so that it does
        not depend on timing which of them gets the last call.
        """
        room = self._meter.room
        return min(self.parallel, max(1, room // _MOST_CALLS)) if room else 0

    @property
    def solved(self) -> bool:
        """Whether enough nodes solve all training pairs."""
        return len(solvers(self.tree)) >= self._votes

    async def expand(self, expansions: Sequence[Expansion]) -> list[Node]:
        """Do the work of all expansions at once, execute the hypotheses, and add the nodes in the order given.

        The order does not depend on which model call ends first, so a search is repeatable. An expansion for which the
        budget has no call left adds no node. Raises :class:`ModelUnreachable`, after all others have ended.
        """
        self._show()  # now, because a method scores new nodes after they are added
        results = await asyncio.gather(*(self._one(expansion) for expansion in expansions), return_exceptions=True)
        made = []
        for expansion, result in zip(expansions, results, strict=True):
            if isinstance(result, BudgetSpent | ModelUnreachable):
                continue
            if isinstance(result, BaseException):
                raise result
            made.append(self._add(expansion, *result))
        for result in results:
            if isinstance(result, ModelUnreachable):
                raise result
        return made

    def _show(self) -> None:
        if self._watcher is not None:
            meter = self._meter
            nodes = [traced_node(node) for node in self.tree.nodes]
            self._watcher.update(self.examples.name, nodes, meter.calls, meter.tokens, meter.budget)

    async def _one(self, expansion: Expansion) -> tuple[Proposal, Evaluation | None]:
        proposal = await expansion.work()
        if proposal.hypothesis is None:
            return proposal, None
        return proposal, await self._lab.evaluate(proposal.hypothesis.program, self.examples)

    def _add(self, expansion: Expansion, proposal: Proposal, evaluation: Evaluation | None) -> Node:
        node = self.tree.add(expansion.parent, expansion.action)
        node.calls, node.tokens = self._meter.calls, self._meter.tokens
        node.hypothesis, node.evaluation = proposal.hypothesis, evaluation
        node.failure = proposal.failure or ""
        if evaluation is None:
            node.state = "failed"
        else:
            node.coherent = node.reward = evaluation.coherent
            node.state = "solved" if node.coherent == 1.0 else "open"
            self._note_best(node)
        return node

    def _note_best(self, node: Node) -> None:
        """Extend the course if the answer has changed."""
        voters = solvers(self.tree)
        best = best_node(self.tree)
        answering = voters if self._votes > 1 and voters else [] if best is None else [best]
        programs = tuple(other.hypothesis.program for other in answering if other.hypothesis is not None)
        if programs and (not self._course or self._course[-1].programs != programs):
            self._course.append(Best(programs, node.calls, node.tokens, answering[0].coherent))

    def end(self, ended: Ended) -> Solution:
        """The solution with which the search ends."""
        self._show()
        return Solution(tuple(self._course), ended, self._meter.calls, self._meter.tokens)

    @property
    def answer(self) -> list[int]:
        """The numbers of the nodes whose programs are the answer."""
        programs = self._course[-1].programs if self._course else ()
        chosen = []
        for program in programs:
            number = next(
                node.number
                for node in self.tree.hypotheses
                if node.hypothesis is not None and node.hypothesis.program == program and node.number not in chosen
            )
            chosen.append(number)
        return chosen
