"""Gather rollouts by prompt, with bounded memory if asked."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skillweave.audit.rollouts.log import LogNotes, Rollout, read_log
from skillweave.audit.rollouts.segments import unexplained_part

TEXTS_KEPT = 64
"""The newest completions of a prompt whose texts are kept, for the distance between samples."""


@dataclass
class PromptGroup:
    """All rollouts of one prompt, oldest first; the columns have one entry for each rollout."""

    prompt: str
    gold: str | None
    ids: list[str]
    most: int | None = None
    steps: deque[int] = field(init=False)
    rewards: deque[float] = field(init=False)
    refused: deque[bool] = field(init=False)
    unexplained: deque[float] = field(init=False)
    texts: deque[tuple[int, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.steps, self.rewards = deque(maxlen=self.most), deque(maxlen=self.most)
        self.refused, self.unexplained = deque(maxlen=self.most), deque(maxlen=self.most)
        self.texts = deque(maxlen=TEXTS_KEPT if self.most is None else min(TEXTS_KEPT, self.most))

    def __len__(self) -> int:
        return len(self.steps)

    def mean_reward(self) -> float:
        """Return the mean of the rewards that are known; NaN if there are none."""
        known = [reward for reward in self.rewards if reward == reward]
        return float(np.mean(known)) if known else float("nan")


class Groups:
    """The prompts of a log. Rollouts belong to one prompt if they have the same prompt text or the same id.

    ``most_prompts`` and ``most_rollouts`` (for each prompt) bound the memory: then the prompt that was not seen for
    longest, or the oldest rollout of a prompt, is forgotten. ``forgotten`` counts the prompts.
    """

    def __init__(
        self,
        refuses: Callable[[str], bool],
        most_prompts: int | None = None,
        most_rollouts: int | None = None,
    ):
        self._refuses, self._most_prompts, self._most_rollouts = refuses, most_prompts, most_rollouts
        self._groups: OrderedDict[int, PromptGroup] = OrderedDict()
        self._by_text: dict[str, int] = {}
        self._by_id: dict[str, int] = {}
        self._next = 0
        self.forgotten = 0
        self.several_texts: set[str] = set()

    def __len__(self) -> int:
        return len(self._groups)

    def all(self) -> list[PromptGroup]:
        """Return the groups; the prompt that was seen last is last."""
        return list(self._groups.values())

    def add(self, rollout: Rollout) -> None:
        """Add a rollout to its prompt."""
        group = self._group_of(rollout)
        group.steps.append(rollout.step)
        group.rewards.append(rollout.reward)
        group.refused.append(self._refuses(rollout.completion))
        group.unexplained.append(unexplained_part(rollout.completion, group.gold))
        group.texts.append((rollout.step, rollout.completion))

    def _group_of(self, rollout: Rollout) -> PromptGroup:
        number = self._by_text.get(rollout.prompt)
        if number is None and rollout.id is not None and (number := self._by_id.get(rollout.id)) is not None:
            self.several_texts.add(rollout.id)  # one id, another text: for example a date in the prompt
            self._by_text[rollout.prompt] = number
        if number is None:
            number, self._next = self._next, self._next + 1
            self._by_text[rollout.prompt] = number
            self._groups[number] = PromptGroup(rollout.prompt, rollout.gold, [], self._most_rollouts)
        group = self._groups[number]
        self._groups.move_to_end(number)
        if rollout.id is not None and rollout.id not in group.ids:
            self._by_id.setdefault(rollout.id, number)
            group.ids.append(rollout.id)
        group.gold = rollout.gold if group.gold is None else group.gold
        if self._most_prompts is not None and len(self._groups) > self._most_prompts:
            self._forget()
        return group

    def _forget(self) -> None:
        number, _ = self._groups.popitem(last=False)
        self._by_text = {text: at for text, at in self._by_text.items() if at != number}
        self._by_id = {id_: at for id_, at in self._by_id.items() if at != number}
        self.forgotten += 1


def read_groups(path: str | Path, refuses: Callable[[str], bool]) -> tuple[list[PromptGroup], list[str]]:
    """Return the prompts of a log, and a sentence for everything that is wrong with it."""
    read, groups = LogNotes(), Groups(refuses)
    for rollout in read_log(path, read):
        groups.add(rollout)
    notes = read.lines()
    if groups.several_texts:
        notes.append(
            f"{len(groups.several_texts):,} ids have several prompt texts; the rollouts of an id count as one prompt. "
            "If the ids are not those of records, remove them from the log"
        )
    return groups.all(), notes
