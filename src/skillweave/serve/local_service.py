"""What the routes of the API ask: which models there are, who answers a prompt, and how an answer went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from skillweave.base.chat import PromptOrIds
from skillweave.engine.interface import CountedReply, Engine, RequestCancelled
from skillweave.errors import UserError, nearest
from skillweave.serve.logs import RequestRecord, current_record
from skillweave.serve.metrics import Outcome, PackFigures, ServerMetrics
from skillweave.serve.settings import ServeConfig
from skillweave.weave import AUTO, BASE, Route


class ResidentPacks(Protocol):
    """The packs of the server, of which some are in memory."""

    def use(self, name: str) -> AbstractAsyncContextManager[None]:
        """Keep a pack in memory while the block runs; it is loaded first if it is not there."""

    async def add(self, name: str, folder: str) -> None:
        """Add a pack from its folder. Raises :class:`UserError`."""

    async def remove(self, name: str) -> None:
        """Remove a pack. Raises :class:`UserError` if it is in use."""

    async def pin(self, name: str, pinned: bool) -> None:
        """Keep a pack in memory, or no longer. Raises :class:`UserError` if there is no room."""

    def status(self) -> Sequence[PackFigures]:
        """Return every pack with its place and its counts."""


class LocalService:
    """An engine with its packs, behind the API.

    - ``routed``: whether there is a router, so that the model :data:`~skillweave.weave.AUTO` exists
    - ``default``: the model that stands first in the list, and that answers requests without a model
    """

    def __init__(
        self, engine: Engine, memory: ResidentPacks, settings: ServeConfig, *, routed: bool, default: str
    ) -> None:
        self.engine = engine
        self.memory = memory
        self.settings = settings
        self.routed = routed
        self.default = default
        self.metrics = ServerMetrics(lambda: {BASE, *self.packs()})
        self.metrics.watch(engine.counters, memory.status)
        self.observer = AnswerObserver(self.metrics)

    def packs(self) -> list[str]:
        """Return the names of the packs."""
        return [one.name for one in self.memory.status()]

    def models(self) -> list[str]:
        """Return the names that a request may give as its model, the default one first."""
        names = [*([AUTO] if self.routed else []), BASE, *self.packs()]
        return sorted(names, key=lambda name: name != self.default)

    async def resolve(self, model: str, prompt: PromptOrIds) -> Route:
        """Return who answers: the pack that the model names, or the router's choice for :data:`AUTO`.

        Raises :class:`UserError` for an unknown model.
        """
        if model not in self.models():
            raise UserError(f"there is no model {model!a:.200}; {nearest(model, self.models())}")
        if model == AUTO:
            route = await self.engine.route(prompt)
            self.metrics.routed(route.pack)
            return route
        return Route(None if model == BASE else model, None)

    def use(self, pack: str | None) -> AbstractAsyncContextManager[None]:
        """Keep a pack in memory while its request runs."""
        return nullcontext() if pack is None else self.memory.use(pack)


class AnswerObserver:
    """Notes in the metrics and in the log how each answer goes."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def started(self, route: Route) -> WatchedAnswer:
        """Begin to watch an answer, whose pack is known."""
        return WatchedAnswer(self._metrics, current_record(), route)


@dataclass
class WatchedAnswer:
    """One answer that is being written; its times count from here."""

    metrics: ServerMetrics
    record: RequestRecord
    route: Route
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    latest: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.record.packs.append(self.pack)
        self.record.confidence = self.route.confidence

    @property
    def pack(self) -> str:
        """The pack's name, or `base`."""
        return self.route.pack or BASE

    def wrote(self, tokens: int) -> None:
        """Note that tokens of the answer came."""
        self.latest = time.perf_counter()
        self.tokens += tokens
        if self.first is None and tokens:
            self.first = self.latest
            self.metrics.first_token(self.pack, self.first - self.began)
            if self.record.first_token_seconds is None:
                self.record.first_token_seconds = self.first - self.began

    def finished(self, reply: CountedReply) -> None:
        """Note the end of the answer."""
        self._end(reply.ended, reply.prompt_tokens, reply.completion_tokens)  # type: ignore[arg-type]

    def failed(self, error: BaseException) -> None:
        """Note that there is no whole answer."""
        self._end("cancelled" if is_given_up(error) else "failed", 0, self.tokens)

    def _end(self, outcome: Outcome, prompt_tokens: int, completion_tokens: int) -> None:
        self.metrics.ended(self.pack, outcome, time.perf_counter() - self.began, prompt_tokens, completion_tokens)
        if self.first is not None and self.tokens > 1:
            self.metrics.each_token(self.pack, (self.latest - self.first) / (self.tokens - 1))
        self.record.prompt_tokens += prompt_tokens
        self.record.completion_tokens += completion_tokens
        self.record.ended = outcome


def is_given_up(error: BaseException) -> bool:
    """Whether an answer has ended because its client, or the server, gave it up."""
    return isinstance(error, RequestCancelled) or not isinstance(error, Exception)
