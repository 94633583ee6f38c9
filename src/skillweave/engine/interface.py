"""What every engine offers: submit a request, get a stream of tokens, cancel. `local` and `vllm` are behind it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from skillweave.base import Sampling
from skillweave.base.chat import PromptOrIds
from skillweave.errors import UserError, shown_value
from skillweave.weave import Reply, Route

End = Literal["answer", "length"]
"""``answer`` if the model wrote an end token or a stop string, ``length`` if the answer was cut off at its longest
length or at the end of the context."""


class RequestCancelled(Exception):
    """A request has no answer, because its caller cancelled it or the engine was closed."""


class EngineBusy(Exception):
    """A request was not taken, because too many wait already. ``retry_after`` is a guess, in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer. Log-probabilities are natural, of the model before temperature and ``top_p``.

    ``top`` has the likeliest tokens and their log-probabilities, the likeliest first; it is empty if none were asked
    for. ``logprob`` is None if log-probabilities were not asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class AnswerChunk:
    """A piece of an answer: text that is certain, and the tokens that came with it. Either may be empty."""

    text: str
    tokens: tuple[AnswerToken, ...]


@dataclass(frozen=True, kw_only=True)
class CountedReply(Reply):
    """A reply with its tokens. The completion includes the end token, which the model also had to compute."""

    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[AnswerToken, ...] = ()
    """the tokens of the answer without its end token"""
    matched: str | None = None
    """the stop string that ended the answer"""


class TokenMatcher(Protocol):
    """Which tokens may come next in one answer. It is used by one request only."""

    def restrict(self, scores: Tensor) -> None:
        """Set the scores (V,), float32, of tokens that may not come next to minus infinity, in place."""

    def accept(self, token: int) -> None:
        """Note that the token was written."""


class Grammar(Protocol):
    """A form that an answer must have, for example JSON."""

    def matcher(self, tokenizer: Any, stops: Collection[int]) -> TokenMatcher:
        """Return a matcher for one answer in tokens of this tokenizer; ``stops`` are the end tokens.

        Raises :class:`UserError` if the tokenizer cannot be used.
        """


class Generation(Protocol):
    """One request that an engine is answering. A task that is cancelled while it waits here cancels the request."""

    @property
    def done(self) -> bool:
        """Whether there will be no more tokens."""

    def cancel(self) -> None:
        """Give the request up; it gives its place free within one step. A finished one stays as it is."""

    def chunks(self) -> AsyncIterator[AnswerChunk]:
        """Yield the answer as it is written, from its beginning. Raises the error of the request if it fails."""

    async def reply(self) -> CountedReply:
        """Return the whole answer when it is complete. Raises the error of the request if it fails."""


@dataclass(frozen=True)
class EngineCounters:
    """What an engine has done since it was opened.

    - ``submitted`` = ``finished`` + ``cancelled`` + ``failed`` + ``running`` + ``waiting``
    - ``steps``, ``step_tokens``: forward passes, and the tokens of all of them
    - ``prompt_tokens``, ``completion_tokens``: of the requests that were started; end tokens count
    """

    submitted: int
    finished: int
    cancelled: int
    failed: int
    running: int
    waiting: int
    steps: int
    step_tokens: int
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """Answers the requests of many callers. Use it as ``async with engine``, and from that event loop only.

    Leaving the block cancels all requests that wait or run.
    """

    @property
    def context_length(self) -> int | None:
        """The most tokens that a prompt and its answer have together; None: no limit is known."""

    async def __aenter__(self) -> Engine: ...

    async def __aexit__(self, *error: Any) -> None: ...

    def tokenizer(self, pack: str | None) -> Any:
        """The tokenizer with which a pack (None: the plain base) reads and writes."""

    async def route(self, prompt: PromptOrIds) -> Route:
        """Let the router choose. Raises :class:`UserError` if there is no router."""

    def submit(
        self,
        prompt: PromptOrIds,
        pack: str | None,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> Generation:
        """Put a request into the queue and return it; it does not wait.

        - ``prompt``: a text, messages (with the tools that the template describes), or token ids
        - ``pack``: a pack's name, or None for the plain base
        - ``sampling``: of this request alone; its draws depend on its own ``seed`` and not on other requests
        - ``stop``: the answer ends before the first of these strings
        - ``logprobs``: how many of the likeliest tokens are reported at each token; None: no log-probabilities
        - ``grammar``: the form that the answer must have

        Raises :class:`UserError` at once for a pack that is unknown or not loaded, a prompt that does not fit into the
        context, and a sampling that no token can be drawn by; :class:`EngineBusy` if the queue is full;
        :class:`RequestCancelled` if the engine is closed.
        """

    def counters(self) -> EngineCounters:
        """Return what the engine has done so far."""


def check_sampling(sampling: Sampling) -> None:
    """Raise :class:`UserError` for a sampling that a request cannot be drawn by."""
    if sampling.samples != 1:
        raise UserError(f"a request has one answer, not {sampling.samples}: submit it again for each sample")
    if sampling.model_defaults:
        raise UserError("an engine has no model defaults: give a temperature and a top_p")
    for name, fits, expected in (
        ("max_new_tokens", sampling.max_new_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature < math.inf, "0 or more"),
        ("top_p", 0 <= sampling.top_p <= 1, "a number from 0 to 1"),
    ):
        if not fits:
            raise UserError(f"{name} is {shown_value(getattr(sampling, name))}: expected {expected}")
