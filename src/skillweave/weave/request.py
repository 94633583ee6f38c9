"""What a weave is asked and what it replies: one prompt with its pack, its sampling and its tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skillweave.base import Sampling
from skillweave.base.chat import PromptOrIds
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Ending, Episode, OpenTools

GREEDY = Sampling()
AUTO = "auto"
"""In place of a pack's name: the router chooses."""


@dataclass(frozen=True)
class Request:
    """One prompt, and everything that is needed to answer it.

    - ``prompt``: a text, messages, or token ids.
    - ``pack``: a pack's name, :data:`AUTO` (the router chooses), or None for the plain base.
    - ``sampling``: how tokens are chosen. A request has one answer: ``samples`` must be 1.
    - ``tools``: the tools that the model may call. Their settings replace ``max_new_tokens`` and ``batch_size``.
    """

    prompt: PromptOrIds
    pack: str | None = None
    sampling: Sampling = GREEDY
    tools: OpenTools | None = None


@dataclass(frozen=True)
class Conversation:
    """A conversation with tools, after its prompt.

    - ``before``: all text before the last turn: earlier turns, their calls, and the results.
    - ``last``: the last turn as the model wrote it.
    - ``calls``, ``failed_calls``: the number of calls, and of those that failed.
    - ``other_forms``: how many calls had another form than the model was told.
    """

    before: str
    last: str
    calls: int
    failed_calls: int
    other_forms: int = 0

    @classmethod
    def of(cls, episode: Episode, call_format: CallFormat) -> Conversation:
        """The conversation of an episode that has ended."""
        before, last = episode.ids[: episode.last_turn], episode.ids[episode.last_turn :]
        return cls(
            call_format.text(before), call_format.text(last), episode.calls, episode.failures, episode.other_forms
        )


@dataclass(frozen=True)
class Reply:
    """The answer to one request.

    - ``text``: the answer; empty if a conversation with tools ended without one.
    - ``pack``: the pack that answered, or None for the plain base.
    - ``confidence``: the router's confidence in that pack, or None if the request named it.
    - ``ended``: ``answer`` if the model wrote its end token, ``length`` if the answer was cut off, ``calls`` if there
      would have been too many calls of tools.
    - ``conversation``: what happened before the answer, or None without tools.
    """

    text: str
    pack: str | None
    confidence: float | None
    ended: Ending
    conversation: Conversation | None = None

    @property
    def answer(self) -> str | None:
        """The text to score, or None if a conversation ended without an answer."""
        return None if self.conversation is not None and self.ended != "answer" else self.text

    @property
    def record(self) -> dict[str, Any]:
        """The JSON that is written of the reply besides its text and its pack."""
        held = self.conversation
        if held is None:
            return {"ended": self.ended}
        return {
            "ended": self.ended,
            "calls": held.calls,
            "failed_calls": held.failed_calls,
            "other_forms": held.other_forms,
            "conversation": held.before + held.last,
        }
