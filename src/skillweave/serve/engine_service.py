"""What the routes of the API ask: which models there are, who answers a prompt, and who is told how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from skillweave.base.chat import PromptOrIds
from skillweave.engine.interface import Engine, RequestCancelled
from skillweave.serve.errors import unknown_model
from skillweave.serve.logs import current_record
from skillweave.serve.metrics import ServerMetrics
from skillweave.serve.residency import PackStatus
from skillweave.serve.service import AnswerFigures, ModelInfo, RequestLimits, Resolved
from skillweave.weave import AUTO, BASE


class ResidentPacks(Protocol):
    """The packs of the server, of which some are in memory."""

    @property
    def names(self) -> Collection[str]:
        """The names of all packs, which cost nothing to ask for."""

    def use(self, name: str) -> AbstractAsyncContextManager[None]:
        """Keep a pack in memory while the block runs; it is loaded first if it is not there."""

    async def add(self, folder: str) -> str:
        """Add the pack in a folder, and return its name. Raises :class:`UserError`."""

    async def remove(self, name: str) -> None:
        """Remove a pack. Raises :class:`UserError` if it is in use."""

    async def pin(self, name: str) -> None:
        """Load a pack and keep it in memory. Raises :class:`UserError` if there is no room."""

    def unpin(self, name: str) -> None:
        """Let a pack leave memory again."""

    def status(self) -> Sequence[PackStatus]:
        """Return every pack with its place and its counts."""


class EngineService:
    """An engine with its packs, behind the API. It is the :class:`~skillweave.serve.service.Service` of one process.

    - ``routed``: whether the engine has a router, so that there is a model :data:`~skillweave.weave.AUTO`
    - ``default``: the model that is named in examples
    - ``pins``: packs that :meth:`prepare` loads, and that always stay in memory
    - ``forget``: tells the engine that a pack has left, and that another one may get its name
    """

    def __init__(
        self,
        engine: Engine,
        memory: ResidentPacks,
        *,
        limits: RequestLimits,
        fingerprint: str,
        routed: bool = False,
        default: str = BASE,
        pins: Sequence[str] = (),
        forget: Callable[[str], None] | None = None,
    ) -> None:
        self.engine = engine
        self.memory = memory
        self.limits = limits
        self.fingerprint = fingerprint
        self.default = default
        self.metrics = ServerMetrics(lambda name: name == BASE or name in memory.names)
        self.metrics.watch(engine.counters, memory.status)
        self.observer = AnswerObserver(self.metrics)
        self._pins, self._forget = pins, forget
        self._routed = routed
        self._since = int(time.time())

    async def prepare(self) -> None:
        """Do what is left to do when the engine has been opened. Raises :class:`UserError`."""
        for name in self._pins:
            await self.memory.pin(name)

    async def remove_pack(self, name: str) -> None:
        """Remove a pack, with what the engine and the metrics keep of it. Raises :class:`UserError` if it is in use."""
        await self.memory.remove(name)
        if self._forget is not None:
            self._forget(name)
        self.metrics.forget(name)

    def packs(self) -> list[str]:
        """Return the names of the packs."""
        return list(self.memory.names)

    def models(self) -> list[ModelInfo]:
        """Return what clients can name: the base, the router if there is one, and the packs."""
        routed = [ModelInfo(AUTO, "auto", self._since, BASE)] if self._routed else []
        packs = [ModelInfo(name, "pack", self._since, BASE) for name in self.packs()]
        return [ModelInfo(BASE, "base", self._since), *routed, *packs]

    async def resolve(self, model: str, prompt: PromptOrIds) -> Resolved:
        """Return who answers: what the model names, or the router's choice for :data:`~skillweave.weave.AUTO`.

        Raises :class:`~skillweave.serve.errors.ApiError` for an unknown model.
        """
        if model == AUTO and self._routed:
            route = await self.engine.route(prompt)
            return Resolved(route.pack or BASE, route.pack, "router", route.confidence)
        if model != BASE and model not in self.memory.names:
            raise unknown_model(model, [one.id for one in self.models()])
        return Resolved(model, None if model == BASE else model)

    def use(self, pack: str | None) -> AbstractAsyncContextManager[None]:
        """Keep a pack in memory while its request runs."""
        return nullcontext() if pack is None else self.memory.use(pack)


class AnswerObserver:
    """Writes how each answer goes into the metrics, and into the log's record of its request."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def started(self, model: str, resolved: Resolved) -> None:
        """Note who answers."""
        if resolved.route == "router":
            self._metrics.routed(resolved.pack)
        record = current_record()
        record.packs.append(resolved.pack or BASE)
        record.confidence = resolved.confidence

    def first_token(self, resolved: Resolved, seconds: float) -> None:
        """Note how long the answer did not begin."""
        self._metrics.first_token(resolved.pack or BASE, seconds)

    def token(self, resolved: Resolved, count: int, seconds: float) -> None:
        """Note the time of further tokens."""
        self._metrics.further_tokens(resolved.pack or BASE, count, seconds)

    def finished(self, figures: AnswerFigures, reason: str) -> None:
        """Note the end of an answer, for one of the reasons in :data:`~skillweave.serve.metrics.OUTCOMES`."""
        self._metrics.ended(
            figures.resolved.pack or BASE,
            reason,
            figures.seconds,
            figures.prompt_tokens,
            figures.completion_tokens,
        )
        record = current_record()
        record.prompt_tokens += figures.prompt_tokens
        record.completion_tokens += figures.completion_tokens
        record.ended = reason
        if record.first_token_seconds is None:
            record.first_token_seconds = figures.first_token

    def failed(self, figures: AnswerFigures, error: BaseException) -> None:
        """Note that an answer broke off: it was given up by its client or the server, or there was a fault."""
        given_up = isinstance(error, RequestCancelled) or not isinstance(error, Exception)
        self.finished(figures, "cancelled" if given_up else "failed")
