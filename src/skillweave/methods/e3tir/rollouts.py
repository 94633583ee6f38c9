"""One batch of groups: conversations the policy starts itself, and continuations of an expert's prefix.

[digest] The policy plays n self rollouts, which all count. The k positions of an expert's trace at which the policy's
own entropy is highest are the anchors, and the policy plays m continuations from them. The expert pool joins the group
only if its best reward is higher than the best of the self pool.
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
from skillweave.methods.e3tir.config import E3tirConfig, ExpertSettings, GroupSettings
from skillweave.methods.e3tir.group import Group, Member, reward_parts
from skillweave.methods.e3tir.trace_tokens import (
    EncodedTrace,
    annealed_share,
    calls_of,
    certain_positions,
    nearest_eligible,
    pick_anchors,
    split_branches,
)
from skillweave.tasks import Entry
from skillweave.tasks.with_tools import AgentTask
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Episode, Start, play
from skillweave.tools.writer import Writer

_REPEAT = "/"


@dataclass(frozen=True)
class _Branch:
    """Where a branch begins, and the positions in its prefix that get no gradient."""

    start: Start
    silent: Sequence[int] = ()


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
        chosen = [(self._entries[id], self._traces.get(id) if self._asks else None) for id in ids]

        def played(starts: Sequence[Start]) -> list[Episode]:
            return play(writer, self._call_format, self._agent.toolbox, starts, settings, self._context)

        starts: list[Start] = []
        for turn, (entry, trace) in zip(turns, chosen, strict=True):
            prompt = trace.prompt if trace is not None else self._call_format.prompt_ids(entry.prompt)
            starts += [Start(prompt, self._seed(step, turn, "self", at)) for at in range(self._stage.n)]
        if self._expert.ask == "failed" or self._expert.branch == "own":  # what branches depends on how these end
            own = self._members([entry for entry, _ in chosen], played(starts))
            if self._expert.ask == "failed":
                chosen = [
                    (entry, None if any(member.score == 1 for member in members) else trace)
                    for (entry, trace), members in zip(chosen, own, strict=True)
                ]
            branching = self._branching(turns, chosen, own, model, around, step)
            ends = played([branch.start for branches in branching for branch in branches])
        else:
            branching = self._branching(turns, chosen, [], model, around, step)
            ends = played([*starts, *(branch.start for branches in branching for branch in branches)])
            own = self._members([entry for entry, _ in chosen], ends[: len(starts)])
            ends = ends[len(starts) :]
        rest = iter(ends)
        groups = []
        for (entry, trace), members, branches in zip(chosen, own, branching, strict=True):
            for branch in branches:
                members.append(self._member(entry, next(rest), len(branch.start.ids), branch.silent))
            if trace is not None and not self._branches:
                # With `sum` there is one copy: only the weight says how much its loss counts.
                copies = 1 if self._expert.mixing == "sum" else self._stage.m
                members += [self._member(entry, trace.episode(), len(trace.ids)) for _ in range(copies)]
            group = Group(entry, members)
            group.set_advantages(self._config)
            groups.append(group)
        return groups

    @property
    def _expert(self) -> ExpertSettings:
        return self._config.expert

    @property
    def _asks(self) -> bool:
        """Whether the groups of this stage have experts."""
        return self._stage.m > 0 and self._expert.branch != "own"

    @property
    def _branches(self) -> bool:
        """Whether the policy continues expert prefixes; else the whole trace is in the group."""
        return self._expert.branch not in ("whole", "own") and self._expert.mixing == "group"

    def _members(self, entries: Sequence[Entry], episodes: Sequence[Episode]) -> list[list[Member]]:
        """The members that the policy started itself, for each of ``entries``."""
        rest = iter(episodes)
        return [[self._member(entry, next(rest), 0) for _ in range(self._stage.n)] for entry in entries]

    def _branching(
        self,
        turns: Sequence[str],
        chosen: Sequence[tuple[Entry, EncodedTrace | None]],
        own: Sequence[Sequence[Member]],
        model: Any,
        around: Callable[[], Any],
        step: int,
    ) -> list[list[_Branch]]:
        """For each turn its branches; none where there is nothing to branch from."""
        if self._stage.m and self._expert.branch == "own":
            return [self._own_branches(turn, members, step) for turn, members in zip(turns, own, strict=True)]
        if not self._branches:
            return [[] for _ in turns]
        traces = [trace for _, trace in chosen if trace is not None]
        rest = iter(self._scores(traces, model, around, step))
        return [
            [] if trace is None else self._expert_branches(turn, trace, next(rest), step)
            for turn, (_, trace) in zip(turns, chosen, strict=True)
        ]

    def _scores(self, traces: Sequence[EncodedTrace], model: Any, around: Callable[[], Any], step: int) -> list[Tensor]:
        """The policy's entropy at each token of each trace; random numbers if the settings need no entropy."""
        if not traces or (self._expert.branch == "random" and self._expert.uncertain == 1):
            return [self._random_scores(trace, step) for trace in traces]
        pad = self._call_format.tokenizer.pad_token_id
        return expert_entropies(model, traces, pad, around, self._config.rollout.batch_size)

    def _expert_branches(self, turn: str, trace: EncodedTrace, entropy: Tensor, step: int) -> list[_Branch]:
        """The m branches of a trace."""
        settings, m = self._expert, self._stage.m
        eligible = trace.eligible
        eligible[self._config.rollout.max_tokens - 1 :] = False  # a branch needs room for at least one token
        if settings.branch in ("turns", "annealed"):
            eligible &= trace.turn_starts
        if settings.branch == "annealed":
            anchors = nearest_eligible(eligible, annealed_share(step // self._stage.updates, self._stage.steps))
        else:
            scores = self._random_scores(trace, step) if settings.branch == "random" else entropy
            anchors = pick_anchors(scores, eligible, settings.k)
        cuts = [cut for cut, count in zip(anchors, split_branches(m, anchors), strict=True) for _ in range(count)]
        return [
            _Branch(
                trace.start(cut, self._seed(step, turn, "branch", at)),
                certain_positions(entropy[:cut], trace.written[:cut], settings.uncertain),
            )
            for at, cut in enumerate(cuts)
        ]

    def _own_branches(self, turn: str, members: Sequence[Member], step: int) -> list[_Branch]:
        """m branches, each from a random place after a tool's result in a random conversation of ``members``."""
        places = []
        for episode in (member.episode for member in members):
            made = calls_of(self._call_format, episode.ids, episode.writers)
            ends = [end for end, _ in made if end < self._config.rollout.max_tokens]
            places += [(episode, end, [calls for before, calls in made if before <= end]) for end in ends]
        if not places:
            return []
        draw = Random(self._seed(step, turn, "places", 0))
        branches = []
        for at in range(self._stage.m):
            episode, cut, calls = draw.choice(places)
            seed = self._seed(step, turn, "branch", at)
            branches.append(_Branch(Start(episode.prompt, seed, episode.ids[:cut], episode.writers[:cut], calls)))
        return branches

    def _random_scores(self, trace: EncodedTrace, step: int) -> Tensor:
        """(T,) random numbers that replace the entropies, so that anchors are random positions."""
        draw = Random(self._seed(step, trace.id, "anchors", 0))
        return torch.tensor([draw.random() for _ in trace.ids])

    def _member(self, entry: Entry, episode: Episode, prefix: int, silent: Sequence[int] = ()) -> Member:
        score = self._agent.task.score(episode.answer, entry)
        return Member(episode, prefix, prefix > 0, score, reward_parts(episode, score, self._config.reward), silent)

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
