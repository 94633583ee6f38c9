"""What a weave is asked, and what it replies: one prompt with everything that is needed to answer it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from skillweave.base import Sampling
from skillweave.base.chat import PromptOrIds
from skillweave.tools.conversation import Ending, OpenTools

AUTO = "auto"
"""In place of a pack's name: the router chooses the pack."""


@dataclass(frozen=True)
class Request:
    """One prompt to be answered.

    - ``prompt``: a text, messages, or (without tools) token ids, which are used as they are
    - ``pack``: the name of a pack, :data:`AUTO`, or None for the plain base
    - ``sampling``: how tokens are chosen, and without tools also the longest answer and the batch size; one sample
    - ``tools``: the tools that may be called, or None; their settings hold the limits and the batch size of
      conversations

    A conversation with tools draws from its own ``sampling.seed`` alone. Requests without tools that have the same
    sampling are drawn batch by batch, so their draws depend on the batch.
    """

    prompt: PromptOrIds
    pack: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    tools: OpenTools | None = None


@dataclass(frozen=True)
class Conversation:
    """How a reply with tools came about.

    - ``before``: the text between the prompt and the last turn: calls and their results
    - ``last``: the last turn as the model wrote it
    - ``calls``, ``failed_calls``: how many calls were made, and how many of them failed
    - ``other_forms``: how many calls were written in another form than the model was told to use
    """

    before: str
    last: str
    calls: int
    failed_calls: int
    other_forms: int = 0


@dataclass(frozen=True)
class Reply:
    """The answer to one request.

    - ``text``: the answer; empty if a conversation ended without one
    - ``pack``: the pack that answered, or None for the plain base
    - ``confidence``: the router's probability of that pack or the base; None if the caller chose
    - ``ended``: ``answer`` if the model ended its answer, ``length`` if the answer was cut off, ``calls`` if the model
      wanted more calls than allowed
    - ``conversation``: the calls of tools, or None for a request without tools
    """

    text: str
    pack: str | None
    confidence: float | None
    ended: Ending
    conversation: Conversation | None = None

    @property
    def answer(self) -> str | None:
        """The text to be scored. It is None if a conversation ended without an answer, which is not an empty answer."""
        return self.text if self.conversation is None or self.ended == "answer" else None

    @property
    def record(self) -> dict[str, Any]:
        """The values of a reply that are written to files beside its text and its pack, ready for JSON."""
        if self.conversation is None:
            return {"ended": self.ended}
        return {
            "ended": self.ended,
            "calls": self.conversation.calls,
            "failed_calls": self.conversation.failed_calls,
            "other_forms": self.conversation.other_forms,
            "conversation": self.conversation.before + self.conversation.last,
        }
