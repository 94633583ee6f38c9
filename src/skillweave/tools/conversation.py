"""The turn loop: the model writes until it calls tools or answers, the calls are run, and it reads the results.

From top to bottom: the settings, :func:`begin` (prompts become tokens), :func:`converse` (the model is prepared to
write), :func:`play` (the loop over turns), and :class:`_Live` (the state of one conversation). All conversations run
side by side: while some are still being written, the calls of those whose turn has ended already run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field

from skillweave.base.chat import PromptOrIds
from skillweave.base.defaults import HONOURED_WITH_TOOLS
from skillweave.base.defaults import model_defaults as defaults_of
from skillweave.base.generate import check_prompt
from skillweave.base.sizes import context_length
from skillweave.base.thoughts import MARK_TOKENS
from skillweave.base.voice import Voice
from skillweave.config import Config
from skillweave.files.hashes import digest
from skillweave.progress import bar
from skillweave.tools.call import POLICY, TOOL, Call, Outcome
from skillweave.tools.call_format import CallFormat
from skillweave.tools.toolbox import Toolbox, ToolSession
from skillweave.tools.turn import Thoughts
from skillweave.tools.writer import Writer

Ending = Literal["answer", "calls", "length"]
"""Why a conversation ended: it has an answer, it would have exceeded its calls, or it reached its longest length."""

# -- settings --------------------------------------------------------------------------------------------------------


class ConversationSettings(Config):
    """Settings of a conversation with tools: its limits, and how the model is told of its tools."""

    max_tool_calls: int = Field(
        default=4,
        ge=0,
        description="most calls of one conversation; a turn that would exceed them ends it without an answer",
    )
    max_tokens: int = Field(
        default=1024, ge=1, description="most tokens after the prompt, the results of tools included"
    )
    max_tool_tokens: int = Field(default=512, ge=1, description="most tokens of one result; the rest is cut off")
    batch_size: int = Field(default=64, ge=1, description="conversations that one process writes at the same time")
    thoughts: Thoughts = Field(
        default="strip",
        description="'strip': calls inside <think>...</think> are not made and thoughts are not part of the answer; "
        "'keep': thoughts are read like other text",
    )
    instruction: str | None = Field(
        default=None,
        description="text that tells the model about its tools; null: its chat template does, or a built-in text if "
        "the template does not take tools; '': nothing, for a model that was trained on the tools",
    )

    def call_format(self, tokenizer: Any, toolbox: Toolbox) -> CallFormat:
        """How a model with this tokenizer uses the tools of ``toolbox``.

        Raises :class:`UserError` if the tokenizer has no chat template.
        """
        return CallFormat(
            tokenizer,
            toolbox,
            max_tool_tokens=self.max_tool_tokens,
            instruction=self.instruction,
            thoughts=self.thoughts,
        )


@dataclass(frozen=True, eq=False)
class OpenTools:
    """Tools that are ready to be called, and the settings of the conversations that use them."""

    toolbox: Toolbox
    settings: ConversationSettings


# -- the two ends of a conversation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Where a conversation begins: at a prompt, or at a point in the middle of a conversation.

    - ``prompt``: its token ids
    - ``seed``: for everything that is sampled in this conversation
    - ``ids``, ``writers``: the tokens after the prompt so far, and who wrote each (``POLICY``, ``EXPERT`` or ``TOOL``)
    - ``calls``: the calls in ``ids``, one sequence for each turn; they are run again, so that stateful tools are in the
      state in which these turns left them
    """

    prompt: Sequence[int]
    seed: int
    ids: Sequence[int] = ()
    writers: Sequence[int] = ()
    calls: Sequence[Sequence[Call]] = ()


@dataclass
class Episode:
    """A conversation that was played.

    - ``ids`` (T,): the tokens after the prompt; ``writers`` (T,): who wrote each (``POLICY``, ``EXPERT`` or ``TOOL``)
    - ``calls``: the number of all calls, those of its start included
    - ``turns``: the number of turns that the model wrote in it
    - ``other_forms``: the number of its own calls that were written in another form than the model was told to use
    - ``outcomes``: of the calls that it made itself
    - ``names``: the tool of each call, without its own calls that failed
    - ``answer``: the text of its last turn, or None if it ended without an answer
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
        """The index in ``ids`` where its last turn begins: after the last result of a tool."""
        return _after_last_result(self.writers)


def begin(
    model: Any,
    call_format: CallFormat,
    prompts: Sequence[PromptOrIds],
    *,
    seeds: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
    rows: int | None = None,
) -> list[Start]:
    """The start of a conversation for each prompt.

    - ``seeds``: the seed of each conversation; None: 0, 1, 2, ...
    - ``numbers``: the numbers of the prompts, from 0, for errors; None: 0, 1, 2, ...
    - ``rows``: the number of tokens that the model has embeddings for; None: as its embedding has

    Raises :class:`UserError` for a prompt that leaves no room in the model's context, and for a token without a row.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    seeds = range(len(prompts)) if seeds is None else seeds
    starts = [Start(call_format.prompt_ids(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    voice = Voice(call_format.tokenizer, rows=rows)
    for number, start in zip(numbers, starts, strict=True):
        check_prompt(model, voice, start.prompt, number, with_tools=True)
    return starts


# -- the loop ----------------------------------------------------------------------------------------------------------


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
    ended: Callable[[int, Episode], object] = lambda index, episode: None,
    label: str | None = None,
) -> list[Episode]:
    """Play all conversations with ``model``, side by side, and return them in the order of ``starts``.

    - ``temperature``, ``top_p``: 0 is greedy; with ``model_defaults`` the model's ``generation_config.json`` decides
    - ``around()``: a context manager that is entered around the model's calls, for example autocast
    - ``ended``: as in :func:`play`
    - ``label``: the label of a progress bar; None: no bar
    """
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    if model_defaults:
        sampling = {"temperature": 0.0, **defaults_of(model, HONOURED_WITH_TOOLS)}
    writer = Writer(model, call_format.tokenizer, **sampling, batch_size=settings.batch_size, around=around)
    with bar(label or "", len(starts), shown=label is not None) as advance:

        def after_one(index: int, episode: Episode) -> None:
            ended(index, episode)
            advance(1)

        return play(writer, call_format, toolbox, starts, settings, context_length(model), ended=after_one)


class TurnWriter(Protocol):
    """What :func:`play` needs to write turns; :class:`~skillweave.tools.writer.Writer` is one."""

    @property
    def stops(self) -> Sequence[int]:
        """The token ids that end a turn."""

    def write(
        self, contexts: Sequence[Sequence[int]], room: Sequence[int], seeds: Sequence[int]
    ) -> Iterable[tuple[int, list[int]]]:
        """Each turn as soon as it is finished: the index of its context, and its tokens."""


def play(
    writer: TurnWriter,
    call_format: CallFormat,
    toolbox: Toolbox,
    starts: Sequence[Start],
    settings: ConversationSettings,
    context: int | None,
    *,
    ended: Callable[[int, Episode], object] = lambda index, episode: None,
) -> list[Episode]:
    """Play all conversations to their ends, side by side, and return them in the order of ``starts``.

    - ``context``: the most tokens that the model reads; None: any number
    - ``ended``: called with each conversation as soon as it has ended, and with its index in ``starts``
    """
    sessions = toolbox.open_after([start.calls for start in starts])
    conversations = [
        _Live(start, call_format, session, settings, context) for start, session in zip(starts, sessions, strict=True)
    ]
    while running := [at for at, one in enumerate(conversations) if one.episode.ended is None]:
        live = [conversations[at] for at in running]
        turns = writer.write([one.context for one in live], [one.room for one in live], [one.turn_seed for one in live])
        waiting: list[tuple[int, Future[list[Outcome]]]] = []
        for index, ids in turns:
            calls = live[index].add_turn(ids, writer.stops)
            if calls is not None:
                waiting.append((index, calls))
            else:
                ended(running[index], live[index].episode)
        for index, outcomes in waiting:
            live[index].add_results(outcomes.result())
            if live[index].episode.ended is not None:
                ended(running[index], live[index].episode)
    return [one.episode for one in conversations]


class _Live:
    """The state of one conversation while it is played."""

    def __init__(
        self,
        start: Start,
        call_format: CallFormat,
        session: ToolSession,
        settings: ConversationSettings,
        context: int | None,
    ) -> None:
        self._call_format, self._session = call_format, session
        self._seed, self._max_calls = start.seed, settings.max_tool_calls
        self._calls: Sequence[Call | Outcome] = ()
        """The calls of its last turn."""
        self.episode = Episode(list(start.prompt), list(start.ids), list(start.writers))
        self.episode.names = [call.name for calls in start.calls for call in calls]
        self.episode.calls = len(self.episode.names)
        self._longest = settings.max_tokens
        if context is not None:
            self._longest = min(self._longest, context - len(start.prompt))
        self._turn = self.episode.last_turn
        """The index where the turn that is being written begins."""
        if self.room < 1:
            self.episode.ended = "length"

    @property
    def context(self) -> list[int]:
        """All tokens so far, the prompt included."""
        return [*self.episode.prompt, *self.episode.ids]

    @property
    def room(self) -> int:
        """The number of tokens by which it may still grow."""
        return self._longest - len(self.episode.ids)

    @property
    def turn_seed(self) -> int:
        """The seed of the next turn. It depends only on the conversation's seed and the number of the turn."""
        return int(digest([self._seed, self.episode.turns])[:15], 16)

    def add_turn(self, ids: Sequence[int], stops: Sequence[int]) -> Future[list[Outcome]] | None:
        """Append a turn and start its calls. Returns their outcomes to come, or None if the conversation has ended."""
        episode = self.episode
        episode.ids += ids
        episode.writers += [POLICY] * len(ids)
        episode.turns += 1
        if not ids or ids[-1] not in stops:
            episode.ended = "length"
            return None
        # The template may have opened a thought just before the turn.
        before = self._call_format.text(episode.ids[max(0, self._turn - MARK_TOKENS) : self._turn])
        turn = self._call_format.read(self._call_format.text(episode.ids[self._turn : -1]), before)
        if not turn.calls:
            episode.answer, episode.ended = turn.answer, "answer"
            return None
        if episode.calls + len(turn.calls) > self._max_calls:
            episode.ended = "calls"
            return None
        episode.calls += len(turn.calls)
        episode.other_forms += turn.other_forms
        self._calls = turn.calls
        return self._session.start(turn.calls)

    def add_results(self, outcomes: list[Outcome]) -> None:
        """Append the results of the last turn's calls."""
        episode = self.episode
        episode.outcomes += outcomes
        succeeded = [call for call, outcome in zip(self._calls, outcomes, strict=True) if outcome.fault is None]
        episode.names += [call.name for call in succeeded if isinstance(call, Call)]
        ids = self._call_format.result_ids(outcomes)
        episode.ids += ids
        episode.writers += [TOOL] * len(ids)
        self._turn = len(episode.ids)
        if self.room < 1:
            # The model never reads what exceeds the limit: the conversation ends exactly there.
            del episode.ids[self._longest :], episode.writers[self._longest :]
            episode.ended = "length"


def _after_last_result(writers: Sequence[int]) -> int:
    """The index after the last token of a tool; 0 if there is none."""
    return next((at + 1 for at in range(len(writers) - 1, -1, -1) if writers[at] == TOOL), 0)
