"""Conversations with tools: the model writes a turn, its calls run, their results come back, until it answers.

Many conversations are held side by side. While some are still being written, the calls of those whose turn is over
already run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field

from skillweave.base.chat import PromptOrIds
from skillweave.base.defaults import HONOURED_WITH_TOOLS
from skillweave.base.defaults import model_defaults as defaults_of
from skillweave.base.generate import check_prompt, context_length
from skillweave.base.thoughts import MARK_TOKENS
from skillweave.base.voice import Voice
from skillweave.config import Config
from skillweave.files.hashes import digest
from skillweave.progress import bar
from skillweave.tools.call import POLICY, TOOL, Call, Outcome
from skillweave.tools.call_format import CallFormat
from skillweave.tools.toolbox import Session, Toolbox
from skillweave.tools.turn import Thoughts
from skillweave.tools.writer import Writer

Ending = Literal["answer", "calls", "length"]
"""Why a conversation ended: an answer, too many calls, or too many tokens."""


class ConversationSettings(Config):
    """Settings of a conversation with tools: its limits, and how the model is told of the tools."""

    max_tool_calls: int = Field(
        default=4,
        ge=0,
        description="most tool calls of one conversation; a turn that would exceed it ends the conversation without "
        "an answer",
    )
    max_tokens: int = Field(
        default=1024, ge=1, description="most tokens after the prompt, the results of tools included"
    )
    max_tool_tokens: int = Field(default=512, ge=1, description="most tokens of one result; the rest is cut off")
    batch_size: int = Field(default=64, ge=1, description="conversations that one process writes at the same time")
    thoughts: Thoughts = Field(
        default="strip",
        description="what happens to text in <think>...</think>: 'strip' removes it from the turn, 'keep' keeps it",
    )
    instruction: str | None = Field(
        default=None,
        description="text that tells the model of its tools; default: its chat template, or else a short system "
        "message; '': nothing, for a model that was trained with these tools",
    )

    def call_format(self, tokenizer: Any, toolbox: Toolbox) -> CallFormat:
        """The call format of a model with this tokenizer. Raises :class:`UserError` if it has no chat template."""
        return CallFormat(
            tokenizer,
            toolbox,
            max_tool_tokens=self.max_tool_tokens,
            instruction=self.instruction,
            thoughts=self.thoughts,
        )


@dataclass(frozen=True)
class OpenTools:
    """An open toolbox, and the settings of the conversations in which a model may use it."""

    toolbox: Toolbox
    settings: ConversationSettings


@dataclass(frozen=True)
class Start:
    """The start of a conversation: a prompt, or a point in a conversation that somebody else began.

    - ``prompt``: token ids of the prompt.
    - ``seed``: the seed of everything that is sampled.
    - ``ids``, ``writers``: the tokens after the prompt so far, and who wrote each of them.
    - ``calls``: the calls in these tokens, turn by turn; they run again, so that stateful tools reach the same state.
    """

    prompt: Sequence[int]
    seed: int
    ids: Sequence[int] = ()
    writers: Sequence[int] = ()
    calls: Sequence[Sequence[Call]] = ()


@dataclass
class Episode:
    """A conversation that has ended, or is being held.

    - ``ids`` (T,): the tokens after the prompt; ``writers`` (T,): who wrote each (``POLICY``, ``EXPERT`` or ``TOOL``).
    - ``calls``: the number of all calls, those of its start included; ``turns``: the number of the model's turns.
    - ``outcomes``: the results of its own calls (not of those in its start).
    - ``other_forms``: how many of its own calls had another form than the model was told.
    - ``names``: the tools of all calls, without its own calls that failed.
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
        """The number of its own calls that failed."""
        return sum(outcome.fault is not None for outcome in self.outcomes)

    @property
    def last_turn(self) -> int:
        """The index in ``ids`` at which the last turn begins: behind the last result of a tool."""
        return next((at + 1 for at in range(len(self.writers) - 1, -1, -1) if self.writers[at] == TOOL), 0)


class TurnWriter(Protocol):
    """Writes turns, like :class:`~skillweave.tools.writer.Writer`."""

    stops: list[int]

    def write(self, contexts: Any, room: Any, seeds: Any) -> Any: ...


def begin(
    model: Any,
    call_format: CallFormat,
    prompts: Sequence[PromptOrIds],
    *,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    rows: int | None = None,
) -> list[Start]:
    """The starts of conversations on these prompts. The draws of prompt number i depend only on ``seed`` + i.

    ``numbers``: the numbers of the prompts, if they are a part of a larger list (default: 0, 1, 2, ...).
    ``rows``: the number of tokens that the model has rows for (default: the rows of its embedding).
    Raises :class:`UserError` if a prompt leaves no room in the model's context, or has a token without a row.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    starts = [Start(call_format.prompt_ids(prompt), seed + at) for at, prompt in zip(numbers, prompts, strict=True)]
    voice = Voice(call_format.tokenizer, rows=rows)
    for number, start in zip(numbers, starts, strict=True):
        check_prompt(model, voice, start.prompt, number, with_tools=True)
    return starts


def converse(
    model: Any,
    call_format: CallFormat,
    toolbox: Toolbox,
    starts: Sequence[Start],
    settings: ConversationSettings,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    model_defaults: bool = False,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    label: str | None = None,
) -> list[Episode]:
    """Hold all conversations with ``model`` side by side; return them in the order of ``starts``.

    Decoding is greedy by default; with ``model_defaults`` the model's own ``generation_config.json`` decides.
    ``around()`` is entered around the model's calls (for example autocast). ``label`` shows a progress bar.
    """
    choice: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    if model_defaults:
        choice = {"temperature": 0.0, **defaults_of(model, HONOURED_WITH_TOOLS)}
    writer = Writer(model, call_format.tokenizer, **choice, batch_size=settings.batch_size, around=around)
    with bar(label or "", len(starts), shown=label is not None) as advance:
        return play(writer, call_format, toolbox, starts, settings, context_length(model), ended=advance)


def play(
    writer: TurnWriter,
    call_format: CallFormat,
    toolbox: Toolbox,
    starts: Sequence[Start],
    limits: ConversationSettings,
    context: int | None,
    *,
    ended: Callable[[int], object] = lambda count: None,
) -> list[Episode]:
    """Hold all conversations with any writer of turns.

    ``context``: the model's context in tokens, or None if it has no limit. ``ended(count)`` is called each time that
    all have written a turn, with the number of conversations that ended in it.
    """
    sessions = toolbox.open_after([start.calls for start in starts])
    live = [
        _Live(start, call_format, session, limits, context) for start, session in zip(starts, sessions, strict=True)
    ]
    while going := [index for index, one in enumerate(live) if one.episode.ended is None]:
        turns = writer.write(
            [live[index].context for index in going],
            [live[index].room for index in going],
            [live[index].turn_seed for index in going],
        )
        waiting: list[tuple[_Live, Future[list[Outcome]]]] = []
        for at, ids in turns:
            one = live[going[at]]
            calls = one.add_turn(ids, writer.stops)
            if calls is not None:
                waiting.append((one, calls))
        for one, future in waiting:
            one.add_results(future.result())
        ended(sum(live[index].episode.ended is not None for index in going))
    return [one.episode for one in live]


class _Live:
    """A conversation that is being held."""

    def __init__(
        self,
        start: Start,
        call_format: CallFormat,
        session: Session,
        limits: ConversationSettings,
        context: int | None,
    ) -> None:
        self._call_format, self._session, self._limits, self._seed = call_format, session, limits, start.seed
        self._calls: Sequence[Call | Outcome] = ()
        """The calls of the last turn."""
        self.episode = Episode(list(start.prompt), list(start.ids), list(start.writers))
        self.episode.names = [call.name for calls in start.calls for call in calls]
        self.episode.calls = len(self.episode.names)
        self._longest = limits.max_tokens
        if context is not None:
            self._longest = min(self._longest, context - len(start.prompt))
        self._turn = self.episode.last_turn
        """The index at which the current turn begins."""
        if self.room < 1:
            self.episode.ended = "length"

    @property
    def context(self) -> list[int]:
        """All tokens so far, the prompt included."""
        return [*self.episode.prompt, *self.episode.ids]

    @property
    def room(self) -> int:
        """The number of tokens that may still be added."""
        return self._longest - len(self.episode.ids)

    @property
    def turn_seed(self) -> int:
        """The seed of the next turn, which depends only on the conversation's seed and the number of the turn."""
        return int(digest([self._seed, self.episode.turns])[:15], 16)

    def add_turn(self, ids: Sequence[int], stops: Sequence[int]) -> Future[list[Outcome]] | None:
        """Add a turn of the model and start its calls; return their future, or None if the conversation is over."""
        episode = self.episode
        episode.ids += ids
        episode.writers += [POLICY] * len(ids)
        episode.turns += 1
        if not ids or ids[-1] not in stops:
            episode.ended = "length"
            return None
        before = self._call_format.text(episode.ids[max(0, self._turn - MARK_TOKENS) : self._turn])
        turn = self._call_format.read(self._call_format.text(episode.ids[self._turn : -1]), before)
        if not turn.calls:
            episode.answer, episode.ended = turn.answer, "answer"
            return None
        if episode.calls + len(turn.calls) > self._limits.max_tool_calls:
            episode.ended = "calls"
            return None
        episode.calls += len(turn.calls)
        episode.other_forms += turn.other_forms
        self._calls = turn.calls
        return self._session.start(turn.calls)

    def add_results(self, outcomes: list[Outcome]) -> None:
        """Add the results of the last turn's calls."""
        episode = self.episode
        episode.outcomes += outcomes
        succeeded = [call for call, outcome in zip(self._calls, outcomes, strict=True) if outcome.fault is None]
        episode.names += [call.name for call in succeeded if isinstance(call, Call)]
        ids = self._call_format.result_ids(outcomes)
        episode.ids += ids
        episode.writers += [TOOL] * len(ids)
        self._turn = len(episode.ids)
        if self.room < 1:
            # The model never read the results that do not fit: the conversation ends where the room ends.
            del episode.ids[self._longest :], episode.writers[self._longest :]
            episode.ended = "length"
