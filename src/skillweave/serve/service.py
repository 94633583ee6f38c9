"""What the routes of the API need from the server: the engine, the models, the limits, and who is told of answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from skillweave.base.chat import PromptOrIds
from skillweave.engine.interface import Engine

ModelKind = Literal["base", "pack", "auto"]
RouteKind = Literal["named", "router"]
"""Whether the client named the model, or the router chose it."""


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for.

    - ``max_tokens``: the longest answer, in tokens; ``default_max_tokens``: the longest one if the client says nothing
    - ``max_n``: answers to one prompt; ``max_prompts``: prompts of one request for completions
    - ``max_tools``: tools of one request; ``max_tool_bytes``: bytes of all of them, and of a schema, as JSON
    - ``max_stop``: stop strings; ``max_logprobs``: likeliest tokens at each token
    """

    max_tokens: int = 32_768
    default_max_tokens: int = 1024
    max_n: int = 16
    max_prompts: int = 64
    max_tools: int = 128
    max_tool_bytes: int = 256 * 1024
    max_stop: int = 4
    max_logprobs: int = 20


@dataclass(frozen=True)
class ModelInfo:
    """A model that clients can name. ``created`` is a Unix time; ``parent`` is the base's id, and None for the base."""

    id: str
    kind: ModelKind
    created: int
    parent: str | None = None


@dataclass(frozen=True)
class Resolved:
    """What answers a request.

    - ``name``: the id of the model that answers: the pack's name, or the base's id
    - ``pack``: the pack's name, or None for the plain base
    - ``route``: whether the client or the router chose; ``confidence``: the router's probability of its choice
    """

    name: str
    pack: str | None
    route: RouteKind = "named"
    confidence: float | None = None


@dataclass(frozen=True)
class AnswerFigures:
    """How an answer went. The times are seconds since the engine took the request.

    - ``model``: as the client named it; ``resolved``: what answered
    - ``prompt_tokens``, ``completion_tokens``: 0 and the tokens so far if the answer was not completed
    - ``first_token``: None if there was no token
    """

    model: str
    resolved: Resolved
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    first_token: float | None


class Observer(Protocol):
    """Is told of each answer, in the event loop: ``started``, then tokens, then either ``finished`` or ``failed``.

    A request with ``n`` answers is told of n times.
    """

    def started(self, model: str, resolved: Resolved) -> None:
        """The engine took a request; ``model`` is what the client named."""

    def first_token(self, resolved: Resolved, seconds: float) -> None:
        """The first token came this long after the engine took the request."""

    def token(self, resolved: Resolved, count: int, seconds: float) -> None:
        """``count`` further tokens came, this long after those before."""

    def finished(self, figures: AnswerFigures, reason: str) -> None:
        """An answer is complete; ``reason`` is the ``finish_reason`` that the client is told."""

    def failed(self, figures: AnswerFigures, error: BaseException) -> None:
        """An answer broke off: :class:`RequestCancelled` if its client left or the server stops, else a fault."""


class Service(Protocol):
    """What the routes of the API need from the server."""

    @property
    def engine(self) -> Engine: ...

    @property
    def limits(self) -> RequestLimits: ...

    @property
    def observer(self) -> Observer: ...

    @property
    def fingerprint(self) -> str:
        """The ``system_fingerprint`` of responses: it changes when the same seed may give another answer."""

    def models(self) -> Sequence[ModelInfo]:
        """Return the models that clients can name, the base first."""

    async def resolve(self, model: str, prompt: PromptOrIds) -> Resolved:
        """Return what answers a request; the router of the engine chooses if ``model`` is of the kind ``auto``.

        Raises :func:`~skillweave.serve.errors.unknown_model` for a name that is not among :meth:`models`.
        """

    def use(self, pack: str | None) -> AbstractAsyncContextManager[None]:
        """Hold a pack in memory while the block runs, and load it before if necessary."""
