"""One batch of groups: conversations the policy starts itself, and continuations of an expert's prefix.

[digest] The policy plays n self rollouts, which all count. The k positions of an expert's trace at which the policy's
own entropy is highest are the anchors, and the policy plays m continuations from them. The expert pool joins the group
only if its best reward is higher than the best of the self pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from skillweave.base.batching import padded
from skillweave.files.hashes import digest
from skillweave.methods.e3tir.config import E3tirConfig, GroupSettings
from skillweave.methods.e3tir.group import Group, Member, reward_parts
from skillweave.methods.e3tir.trace_tokens import EncodedTrace, pick_anchors, split_branches
from skillweave.tasks import Entry
from skillweave.tasks.with_tools import AgentTask
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Episode, Start, play
from skillweave.tools.writer import Writer

_REPEAT = "/"


class Rollouts:
    """Makes the groups of a batch.

    ``traces`` maps the id of an entry to its expert trace; entries without a trace get no branches. The random draws
    for a prompt depend only on the run's seed, the stage, the step and the prompt, so a resumed run and any number of
    processes draw the same.
    """

    def __init__(
        self,
        agent: AgentTask,
        call_format: CallFormat,
        entries: Sequence[Entry],
        traces: Mapping[str, EncodedTrace],
        config: E3tirConfig,
        stage: GroupSettings,
        *,
        name: str,
        context: int | None,
    ) -> None:
        self._agent, self._call_format, self._traces = agent, call_format, traces
        self._entries = {entry.id: entry for entry in entries}
        self._config, self._stage, self._name, self._context = config, stage, name, context

    @property
    def left_behind(self) -> int:
        """The number of tool threads that did not return in time since this process began."""
        return self._agent.toolbox.left_behind

    def groups(self, turns: Sequence[str], model: Any, around: Callable[[], Any], step: int) -> list[Group]:
        """One group for each of ``turns`` (see :func:`in_turn`), played by ``model`` at optimiser step ``step``.

        The context manager ``around()`` is entered around each call of the model.
        """
        settings = self._config.rollout
        writer = Writer(
            model,
            self._call_format.tokenizer,
            temperature=settings.temperature,
            top_p=settings.top_p,
            batch_size=settings.batch_size,
            around=around,
        )
        ids = [turn.partition(_REPEAT)[0] for turn in turns]
        chosen = [(self._entries[id], self._traces.get(id) if self._stage.m else None) for id in ids]
        anchors = self._anchors([trace for _, trace in chosen], model, around, step)
        starts: list[Start] = []
        for turn, (entry, trace), cuts in zip(turns, chosen, anchors, strict=True):
            prompt = trace.prompt if trace is not None else self._call_format.prompt_ids(entry.prompt)
            starts += [Start(prompt, self._seed(step, turn, "self", at)) for at in range(self._stage.n)]
            if trace is not None:
                starts += [trace.start(cut, self._seed(step, turn, "branch", at)) for at, cut in enumerate(cuts)]
        episodes = iter(play(writer, self._call_format, self._agent.toolbox, starts, settings, self._context))
        groups = []
        for (entry, trace), cuts in zip(chosen, anchors, strict=True):
            members = [self._member(entry, next(episodes), 0) for _ in range(self._stage.n)]
            members += [self._member(entry, next(episodes), cut) for cut in cuts]
            if trace is not None and not self._branches:
                # With `sum` there is one copy: only the weight says how much its loss counts.
                copies = 1 if self._config.expert.mixing == "sum" else self._stage.m
                members += [self._member(entry, trace.episode(), len(trace.ids)) for _ in range(copies)]
            group = Group(entry, members)
            group.set_advantages(self._config)
            groups.append(group)
        return groups

    @property
    def _branches(self) -> bool:
        """Whether the policy continues expert prefixes; else the whole trace is in the group."""
        return self._config.expert.branch != "whole" and self._config.expert.mixing == "group"

    def _anchors(
        self, traces: Sequence[EncodedTrace | None], model: Any, around: Callable[[], Any], step: int
    ) -> list[list[int]]:
        """For each trace the m positions at which its branches begin; an empty list if nothing branches from it."""
        cuts: list[list[int]] = [[] for _ in traces]
        branching = {at: trace for at, trace in enumerate(traces) if trace is not None and self._branches}
        if not branching:
            return cuts
        settings, rollout = self._config.expert, self._config.rollout
        if settings.branch == "anchors":
            pad = self._call_format.tokenizer.pad_token_id
            entropies = expert_entropies(model, list(branching.values()), pad, around, rollout.batch_size)
        else:
            entropies = [self._random_scores(trace, step) for trace in branching.values()]
        for (at, trace), entropy in zip(branching.items(), entropies, strict=True):
            eligible = trace.eligible
            eligible[rollout.max_tokens - 1 :] = False  # a branch needs room for at least one token
            anchors = pick_anchors(entropy, eligible, settings.k)
            for anchor, count in zip(anchors, split_branches(self._stage.m, anchors), strict=True):
                cuts[at] += [anchor] * count
        return cuts

    def _random_scores(self, trace: EncodedTrace, step: int) -> Tensor:
        """(T,) random numbers that replace the entropies, so that anchors are random positions."""
        draw = Random(self._seed(step, trace.id, "anchors", 0))
        return torch.tensor([draw.random() for _ in trace.ids])

    def _member(self, entry: Entry, episode: Episode, prefix: int) -> Member:
        score = self._agent.task.score(episode.answer, entry)
        return Member(episode, prefix, prefix > 0, score, reward_parts(episode, score, self._config.reward))

    def _seed(self, step: int, turn: str, kind: str, at: int) -> int:
        return int(digest([self._config.seed, self._name, step, turn, kind, at])[:15], 16)


def in_turn(ids: Sequence[str], prompts: int) -> list[str]:
    """The ids in the order in which they are played, ``prompts`` in a batch, with repeats inside a batch numbered.

    The number (``ID/1``) gives a repeated prompt other random numbers than its first occurrence.
    """
    turns = []
    for start in range(0, len(ids), prompts):
        seen: Counter[str] = Counter()
        for id in ids[start : start + prompts]:
            turns.append(f"{id}{_REPEAT}{seen[id]}" if seen[id] else id)
            seen[id] += 1
    return turns


@torch.no_grad()
def expert_entropies(
    model: Any, traces: Sequence[EncodedTrace], pad: int, around: Callable[[], Any], batch_size: int
) -> list[Tensor]:
    """The policy's entropy before each token of each trace: (T,) float32 in nats, also before the tokens of tools.

    ``model`` must have a scoring head (:func:`~skillweave.methods.training.head.install_scoring_head`).
    """
    was_training = model.training
    model.eval()
    entropies: list[Tensor] = []
    try:
        for start in range(0, len(traces), batch_size):
            part = traces[start : start + batch_size]
            inputs = padded([(trace.prompt, trace.ids) for trace in part], pad, model.device)
            with around():
                batch = model(**inputs, fused_lm_head=True).entropy.float().cpu()
            for trace, row in zip(part, batch, strict=True):
                begin = len(trace.prompt) - 1
                entropies.append(row[begin : begin + len(trace.ids)])
    finally:
        model.train(was_training)
    return entropies
