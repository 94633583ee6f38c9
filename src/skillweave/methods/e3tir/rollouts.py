"""One batch of groups: conversations that the policy begins itself, and such as go on from where an expert was.

[digest] n self rollouts, all kept; the k positions of an expert trace at which the policy's own entropy is highest
are anchors; m continuations from the expert's prefixes. The expert pool joins the group only if its best reward is
higher than that of the self pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from skillweave.base.batching import padded
from skillweave.files.hashes import digest
from skillweave.methods.e3tir.advantages import hybrid_advantages, join_experts
from skillweave.methods.e3tir.anchors import pick_anchors, split_branches
from skillweave.methods.e3tir.config import E3tirConfig, GroupSettings
from skillweave.methods.e3tir.rewards import reward_parts
from skillweave.methods.e3tir.traces import ExpertTrace
from skillweave.tasks import Entry
from skillweave.tasks.with_tools import AgentTask
from skillweave.tools.call import EXPERT, TOOL
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Episode, Start, play
from skillweave.tools.writer import Writer

_AGAIN = "/"
EPS = 1e-4
"""Beside the standard deviation, as in TRL."""


@dataclass
class Member:
    """A conversation in a group. ``prefix``: how many of its tokens are an expert's; ``joined``: it counts.

    ``advantage`` is that of all its tokens.
    """

    episode: Episode
    prefix: int
    branch: bool
    score: float
    parts: dict[str, float]
    joined: bool = True
    advantage: float = 0.0

    @property
    def reward(self) -> float:
        return sum(self.parts.values())

    @property
    def loss_mask(self) -> list[int]:
        """1 for each token that the policy or the expert wrote, where the conversation counts at all."""
        return [int(self.joined and writer != TOOL) for writer in self.episode.writers]

    @property
    def prefix_mask(self) -> list[bool]:
        """Which tokens are an expert's."""
        return [at < self.prefix and writer == EXPERT for at, writer in enumerate(self.episode.writers)]


@dataclass
class Group:
    """All conversations on one prompt: n of the policy's own, then m from the expert (fewer, where there is none)."""

    entry: Entry
    members: list[Member]

    def pool(self, branch: bool) -> list[Member]:
        """The self pool, or the expert pool."""
        return [member for member in self.members if member.branch == branch]

    def spread(self) -> float:
        """How far apart the rewards are."""
        rewards = [member.reward for member in self.members]
        return max(rewards) - min(rewards)

    def weigh(self, config: E3tirConfig) -> None:
        """Let the expert pool join or not, and give every member its advantage."""
        ours, experts = self.pool(False), self.pool(True)
        settings = config.expert
        summed = settings.mixing == "sum"
        joined = summed or not settings.filter or join_experts(_rewards(ours), _rewards(experts))
        for member in experts:
            member.joined = joined
        # With `sum` the expert's tokens have a loss of their own, and no part in what the others are compared with.
        compared = [member for member in self.members if member.joined and not (summed and member.branch)]
        branch = torch.tensor([member.branch for member in compared], dtype=torch.bool)
        advantages = hybrid_advantages(_rewards(compared), branch, lam=settings.lam, eps=EPS)
        for member, advantage in zip(compared, advantages.tolist(), strict=True):
            member.advantage = advantage
        for member in experts if summed else ():
            member.advantage = settings.weight


class Rollouts:
    """Makes the groups of a batch. ``traces``: the expert's trace of each entry that has one, by the entry's id.

    What is drawn for a prompt hangs on the run's seed, the stage, the step and the prompt alone, so that a resumed run
    and any number of processes draw the same.
    """

    def __init__(
        self, agent: AgentTask, form: CallFormat, entries: Sequence[Entry], traces: Mapping[str, ExpertTrace],
        config: E3tirConfig, stage: GroupSettings, *, name: str, context: int | None,
    ) -> None:  # fmt: skip
        self._agent, self._form, self._traces = agent, form, traces
        self._entries = {entry.id: entry for entry in entries}
        self._config, self._stage, self._name, self._context = config, stage, name, context

    @property
    def left_behind(self) -> int:
        """Threads of tools that did not come back in time, in this process since it began."""
        return self._agent.toolbox.left_behind

    def groups(self, turns: Sequence[str], model: Any, around: Callable[[], Any], step: int) -> list[Group]:
        """A group for each of ``turns`` (:func:`in_turn`), played by ``model`` at optimiser step ``step``; ``around()``
        is entered around its calls."""
        settings = self._config.rollout
        writer = Writer(
            model, self._form.tokenizer, temperature=settings.temperature, top_p=settings.top_p,
            batch_size=settings.batch_size, around=around,
        )  # fmt: skip
        ids = [turn.partition(_AGAIN)[0] for turn in turns]
        chosen = [(self._entries[id], self._traces.get(id) if self._stage.m else None) for id in ids]
        anchors = self._anchors([trace for _, trace in chosen], model, around, step)
        starts: list[Start] = []
        for turn, (entry, trace), cuts in zip(turns, chosen, anchors, strict=True):
            prompt = trace.prompt if trace is not None else self._form.prompt_ids(entry.prompt)
            starts += [Start(prompt, self._seed(step, turn, "self", at)) for at in range(self._stage.n)]
            if trace is not None:
                starts += [trace.start(cut, self._seed(step, turn, "branch", at)) for at, cut in enumerate(cuts)]
        episodes = iter(play(writer, self._form, self._agent.toolbox, starts, settings, self._context))
        groups = []
        for (entry, trace), cuts in zip(chosen, anchors, strict=True):
            members = [self._member(entry, next(episodes), 0) for _ in range(self._stage.n)]
            members += [self._member(entry, next(episodes), cut) for cut in cuts]
            if trace is not None and not self._branches:
                # For `sum` a single copy: the weight alone says how much its loss counts.
                copies = 1 if self._config.expert.mixing == "sum" else self._stage.m
                members += [self._member(entry, trace.episode(), len(trace.ids)) for _ in range(copies)]
            group = Group(entry, members)
            group.weigh(self._config)
            groups.append(group)
        return groups

    @property
    def _branches(self) -> bool:
        return self._config.expert.branch != "whole" and self._config.expert.mixing == "group"

    def _anchors(
        self, traces: Sequence[ExpertTrace | None], model: Any, around: Callable[[], Any], step: int
    ) -> list[list[int]]:
        """For each trace where its branches begin, m of them; nothing where there is no trace to branch from."""
        cuts: list[list[int]] = [[] for _ in traces]
        known = {at: trace for at, trace in enumerate(traces) if trace is not None and self._branches}
        if not known:
            return cuts
        settings = self._config.expert
        if settings.branch == "anchors":
            entropies = expert_entropies(
                model, list(known.values()), self._form.tokenizer.pad_token_id, around, self._config.rollout.batch_size
            )
        else:
            entropies = [self._random(trace, step) for trace in known.values()]
        for (at, trace), entropy in zip(known.items(), entropies, strict=True):
            eligible = trace.eligible
            eligible[self._config.rollout.max_tokens - 1 :] = False  # a branch needs room
            chosen = pick_anchors(entropy, eligible, settings.k)
            for anchor, count in zip(chosen, split_branches(self._stage.m, chosen), strict=True):
                cuts[at] += [anchor] * count
        return cuts

    def _random(self, trace: ExpertTrace, step: int) -> Tensor:
        draw = Random(self._seed(step, trace.id, "anchors", 0))
        return torch.tensor([draw.random() for _ in trace.ids])

    def _member(self, entry: Entry, episode: Episode, prefix: int) -> Member:
        score = self._agent.task.score(episode.answer, entry)
        return Member(episode, prefix, prefix > 0, score, reward_parts(episode, score, self._config.reward))

    def _seed(self, step: int, turn: str, kind: str, at: int) -> int:
        return int(digest([self._config.seed, self._name, step, turn, kind, at])[:15], 16)


def in_turn(ids: Sequence[str], prompts: int) -> list[str]:
    """The ids of entries in the order of their turns, ``prompts`` a batch: one that comes again within a batch is
    marked, so that it is not played with the same random numbers again."""
    turns = []
    for start in range(0, len(ids), prompts):
        seen: Counter[str] = Counter()
        for id in ids[start : start + prompts]:
            turns.append(f"{id}{_AGAIN}{seen[id]}" if seen[id] else id)
            seen[id] += 1
    return turns


@torch.no_grad()
def expert_entropies(
    model: Any, traces: Sequence[ExpertTrace], pad: int, around: Callable[[], Any], batch_size: int
) -> list[Tensor]:
    """The policy's entropy, (T,) float32 in nats, before each token of each trace, a tool's included.

    ``model`` bears a scoring head (:func:`~skillweave.methods.training.head.install_scoring_head`).
    """
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    try:
        for start in range(0, len(traces), batch_size):
            part = traces[start : start + batch_size]
            inputs = padded([(trace.prompt, trace.ids) for trace in part], pad, model.device)
            with around():
                entropy = model(**inputs, fused_lm_head=True).entropy.float().cpu()
            for trace, row in zip(part, entropy, strict=True):
                begin = len(trace.prompt) - 1
                found.append(row[begin : begin + len(trace.ids)])
    finally:
        model.train(was_training)
    return found


def _rewards(members: Sequence[Member]) -> Tensor:
    return torch.tensor([member.reward for member in members], dtype=torch.float32)
