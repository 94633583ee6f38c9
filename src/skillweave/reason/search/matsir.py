"""MATSIR's search: several agents and a Monte Carlo tree search, with a dual reward, pruning and backtracking.

Source: the paper's abstract says what the parts are; the formulas and the control flow are our reconstruction (`ours`),
because neither prompts nor budgets are public.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Literal

from pydantic import Field

from skillweave.config import Config
from skillweave.reason.budget import BudgetSpent
from skillweave.reason.hypothesis import Hypothesis, Note, Proposal
from skillweave.reason.search.frame import Expansion, SearchFrame
from skillweave.reason.search.prune import backtrack, failures_at, gained, is_open, merge_equal, prune_dominated
from skillweave.reason.search.rewards import enrichment, total_reward
from skillweave.reason.search.select import select
from skillweave.reason.search.tree import Node, backpropagate, executed
from skillweave.reason.solution import Ended


class MatsirConfig(Config):
    """MATSIR's search. The flags take one part away each, as in the benchmark's ablations."""

    exploration: float = Field(default=0.7, ge=0, description="c of UCT: Q + c sqrt(ln N_parent / N)")
    best_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the maximum in Q; the rest is the mean reward"
    )
    coherence: float = Field(
        default=0.8, ge=0, le=1, description="w of the reward w * R_coherent + (1 - w) * R_enriched; 1: coherence alone"
    )
    merge: bool = Field(default=True, description="prune nodes that behave like an earlier one")
    prune: bool = Field(
        default=True, description="prune nodes that another one dominates: it solves their pairs and more"
    )
    backtrack: bool = Field(default=True, description="give up a trajectory that has stalled")
    patience: int = Field(
        default=16, ge=1, description="refinements of a node, or below it, without a gain before it is given up"
    )
    critic: bool = Field(
        default=False,
        description="let the critic explain a failing hypothesis before it is refined; it costs a call for each node, "
        "and did not pay at equal calls where we measured it",
    )
    critic_after: int = Field(
        default=0, ge=0, description="refinements of a node without a gain before the critic is asked about it"
    )
    judge: bool = Field(default=True, description="let the judge score a hypothesis that could not be executed")
    remember: int = Field(default=2, ge=0, description="failed attempts at a node that the refiner is told, the latest")
    tell: Literal["returned", "always"] = Field(
        default="returned", description="tell them after the search has gone back to the node, or always"
    )


async def search_matsir(frame: SearchFrame, settings: MatsirConfig) -> Ended:
    """Search until the training pairs are solved or the budget is spent; return why it ended."""
    return await _Matsir(frame, settings).run()


class _Matsir:
    def __init__(self, frame: SearchFrame, settings: MatsirConfig) -> None:
        self._frame = frame
        self._tree = frame.tree
        self._settings = settings
        self._returns: deque[int] = deque()
        """nodes from which the search continues, because it gave up a node below them"""
        self._returned: set[int] = set()
        """nodes to which the search has gone back: their refiner hears what failed there"""
        self._notes: dict[int, asyncio.Task[Note | None]] = {}

    async def run(self) -> Ended:
        while not self._frame.solved:
            wave = [self._pick() for _ in range(self._frame.wave)]
            if not wave:
                return "budget"
            nodes = await self._frame.expand(wave)
            for expansion in wave:
                self._forget_pending(expansion.parent)
            for node in nodes:
                await self._take_in(node)
            if not nodes:  # the critic used the last calls
                return "budget"
        return "solved"

    # -- selection -------------------------------------------------------------------------------------------------

    def _pick(self) -> Expansion:
        node = self._selected()
        for above in self._tree.path(node.number):
            above.pending += 1
        node.growing += 1
        if node.parent is None:
            return Expansion(0, "propose", partial(self._propose, self._frame.propose_key()))
        key = self._frame.refine_key(executed(node)[0])
        return Expansion(node.number, "refine", partial(self._refine, node, key))

    def _selected(self) -> Node:
        while self._returns:
            to = self._tree[self._returns.popleft()]
            if to.parent is None or is_open(to):
                self._returned.add(to.number)
                return to
        settings = self._settings
        return select(
            self._tree,
            exploration=settings.exploration,
            best_share=settings.best_share,
            may_expand=is_open,
        )

    def _forget_pending(self, number: int) -> None:
        self._tree[number].growing -= 1
        for above in self._tree.path(number):
            above.pending -= 1

    # -- expansion -------------------------------------------------------------------------------------------------

    async def _propose(self, key: str) -> Proposal:
        known = [node.hypothesis for node in self._tree.hypotheses if node.hypothesis and node.state != "equal"]
        return await self._frame.team.propose(key, avoid=known)

    async def _refine(self, node: Node, key: str) -> Proposal:
        hypothesis, evaluation = executed(node)
        settings = self._settings
        stuck = len(node.children) >= settings.critic_after and not gained(self._tree, node)
        if settings.critic and stuck and node.number not in self._notes:
            # Several expansions of one node in flight share one note.
            self._notes[node.number] = asyncio.ensure_future(
                self._frame.team.criticise(f"criticise/{node.number}", hypothesis, evaluation)
            )
        if node.number in self._notes:
            node.note = await self._notes[node.number]
        told = settings.tell == "always" or node.number in self._returned
        failed = failures_at(self._tree, node, settings.remember) if told else []
        return await self._frame.team.refine(key, hypothesis, evaluation, node.note, failed)

    # -- evaluation, backpropagation, pruning, backtracking --------------------------------------------------------

    async def _take_in(self, node: Node) -> None:
        """Score a new node, and update what the search knows."""
        settings, evaluation = self._settings, node.evaluation
        assert node.parent is not None
        parent = self._tree[node.parent]
        if evaluation is not None:
            says_more = True
            if settings.judge and not evaluation.ran and node.hypothesis is not None:
                judged = await self._judged(node, node.hypothesis, parent)
                node.coherent, says_more = judged
            siblings = [other.evaluation for other in self._tree.siblings(node) if other.number < node.number]
            known = [other for other in siblings if other is not None]
            node.enriched = enrichment(evaluation, parent.evaluation, known) if says_more else 0.0
            node.reward = total_reward(node.coherent, node.enriched, settings.coherence)
        backpropagate(self._tree, node.number)
        if node.state == "open":
            merged = settings.merge and merge_equal(self._tree, node)
            if settings.prune and not merged:
                prune_dominated(self._tree, node)
        if settings.backtrack and (to := backtrack(self._tree, parent, settings.patience)) is not None:
            self._returns.append(to.number)

    async def _judged(self, node: Node, hypothesis: Hypothesis, parent: Node) -> tuple[float, bool]:
        try:
            judgement = await self._frame.team.judge(f"judge/{node.number}", hypothesis, parent.hypothesis)
        except BudgetSpent:
            judgement = None
        return (0.0, False) if judgement is None else (judgement.consistent, judgement.says_more)
