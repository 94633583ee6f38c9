"""The turn loop: the model writes until it calls or answers, its calls are run, it goes on with what came back.

While some conversations are still written, the calls of those whose turn is over run already.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from skillweave.base.thoughts import MARK_TOKENS
from skillweave.config import Config
from skillweave.files.hashes import digest
from skillweave.tools.call import POLICY, TOOL, Call, Outcome
from skillweave.tools.call_format import CallFormat
from skillweave.tools.toolbox import Session, Toolbox

Ending = Literal["answer", "calls", "length"]


class TurnWriter(typing.Protocol):
    """Whatever writes turns, as :class:`~skillweave.tools.writer.Writer` does."""

    stops: list[int]

    def write(self, contexts: Any, room: Any, seeds: Any) -> Any: ...


class TurnLimits(Config):
    """How far one conversation may go."""

    max_tool_calls: int = Field(4, ge=0)
    """Calls in all; a turn that would go beyond ends the conversation, without an answer."""
    max_tokens: int = Field(1024, ge=1)
    """Tokens after the prompt, what the tools said included."""


@dataclass(frozen=True)
class Start:
    """Where a conversation begins: a prompt, or a point in the middle of one that somebody else began.

    ``ids`` are the tokens after the prompt so far and ``writers`` who wrote each; ``calls`` the calls in them, turn by
    turn, that are run again to bring stateful tools where they were. ``seed`` is for all that is sampled.
    """

    prompt: Sequence[int]
    seed: int
    ids: Sequence[int] = ()
    writers: Sequence[int] = ()
    calls: Sequence[Sequence[Call]] = ()


@dataclass
class Episode:
    """A conversation that was held. ``ids`` (T,) are the tokens after the prompt, ``writers`` (T,) who wrote each.

    ``calls`` counts all its calls, those of its start among them. ``names`` are the tools of those calls, without its
    own that failed; ``outcomes`` are of those it made itself, and ``other_forms`` counts those of them that were
    written in another form than the model was told. ``turns`` counts the model's turns in it.
    """

    prompt: list[int]
    ids: list[int]
    writers: list[int]
    calls: int = 0
    turns: int = 0
    other_forms: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    answer: str | None = None
    ended: Ending | None = None

    @property
    def failures(self) -> int:
        """How many of its own calls came to nothing."""
        return sum(outcome.fault is not None for outcome in self.outcomes)


def play(
    writer: TurnWriter, form: CallFormat, toolbox: Toolbox, starts: Sequence[Start], limits: TurnLimits,
    context: int | None, *, ended: Callable[[int], object] = lambda count: None,
) -> list[Episode]:  # fmt: skip
    """Hold all conversations side by side, to their ends. ``context``: the most tokens the model reads, None: any.

    ``ended(count)`` is told how many more are over, every time that all have written a turn.
    """
    sessions = toolbox.open_after([start.calls for start in starts])
    live = [_Live(start, form, session, limits, context) for start, session in zip(starts, sessions, strict=True)]
    while going := [index for index, one in enumerate(live) if one.episode.ended is None]:
        turns = writer.write(
            [live[index].context for index in going], [live[index].room for index in going],
            [live[index].turn_seed for index in going],
        )  # fmt: skip
        waiting: list[tuple[_Live, Future[list[Outcome]]]] = []
        for at, ids in turns:
            one = live[going[at]]
            calls = one.wrote(ids, writer.stops)
            if calls is not None:
                waiting.append((one, calls))
        for one, future in waiting:
            one.heard(future.result())
        ended(sum(live[index].episode.ended is not None for index in going))
    return [one.episode for one in live]


class _Live:
    """A conversation that is being held."""

    def __init__(
        self, start: Start, form: CallFormat, session: Session, limits: TurnLimits, context: int | None
    ) -> None:
        self._form, self._session, self._limits, self._seed = form, session, limits, start.seed
        self._asked: Sequence[Call | Outcome] = ()
        """The calls of its last turn."""
        self.episode = Episode(list(start.prompt), list(start.ids), list(start.writers))
        self.episode.names = [call.name for calls in start.calls for call in calls]
        self.episode.calls = len(self.episode.names)
        self._longest = limits.max_tokens
        if context is not None:
            self._longest = min(self._longest, context - len(start.prompt))
        self._turn = next((at + 1 for at in range(len(start.writers) - 1, -1, -1) if start.writers[at] == TOOL), 0)
        """Where the turn that is being written began."""
        if self.room < 1:
            self.episode.ended = "length"

    @property
    def context(self) -> list[int]:
        return [*self.episode.prompt, *self.episode.ids]

    @property
    def room(self) -> int:
        """Tokens it may still grow by."""
        return self._longest - len(self.episode.ids)

    @property
    def turn_seed(self) -> int:
        return int(digest([self._seed, self.episode.turns])[:15], 16)

    def wrote(self, ids: Sequence[int], stops: Sequence[int]) -> Future[list[Outcome]] | None:
        """Take in a turn. Returns its calls, begun; None where the conversation is over."""
        episode = self.episode
        episode.ids += ids
        episode.writers += [POLICY] * len(ids)
        episode.turns += 1
        if not ids or ids[-1] not in stops:
            episode.ended = "length"
            return None
        before = self._form.text(episode.ids[max(0, self._turn - MARK_TOKENS) : self._turn])
        turn = self._form.read(self._form.text(episode.ids[self._turn : -1]), before)
        if not turn.calls:
            episode.answer, episode.ended = turn.answer, "answer"
            return None
        if episode.calls + len(turn.calls) > self._limits.max_tool_calls:
            episode.ended = "calls"
            return None
        episode.calls += len(turn.calls)
        episode.other_forms += turn.other_forms
        self._asked = turn.calls
        return self._session.start(turn.calls)

    def heard(self, outcomes: list[Outcome]) -> None:
        """Append what the tools said."""
        episode = self.episode
        episode.outcomes += outcomes
        answered = [call for call, outcome in zip(self._asked, outcomes, strict=True) if outcome.fault is None]
        episode.names += [call.name for call in answered if isinstance(call, Call)]
        ids = self._form.result_ids(outcomes)
        episode.ids += ids
        episode.writers += [TOOL] * len(ids)
        self._turn = len(episode.ids)
        if self.room < 1:
            # What does not fit was never read by the model: the conversation ends where the room does.
            del episode.ids[self._longest :], episode.writers[self._longest :]
            episode.ended = "length"
