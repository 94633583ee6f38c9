"""A whole server without a model: a scripted engine, packs without bytes, and the service around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.fake_engine import FakeEngine
from skillweave.engine.interface import EngineCounters
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer
from skillweave.serve.engine_service import EngineService
from skillweave.serve.residency import PackStatus
from skillweave.serve.service import RequestLimits
from skillweave.weave import Route


class SmallEngine(FakeEngine):
    """Answers every prompt with ``answer``; the router sends prompts with "sort" to the pack `sort`.

    - ``pause``: seconds for each token
    - ``opening``: seconds until it is open, or the error of opening it
    """

    def __init__(self, answer: str = "abc", pause: float = 0.0, opening: float | Exception = 0.0) -> None:
        super().__init__(micro_tokenizer(), lambda _: self.answer, delay=pause)
        self.answer, self.opening, self.is_open = answer, opening, False

    async def __aenter__(self) -> SmallEngine:
        if isinstance(self.opening, Exception):
            raise self.opening
        await asyncio.sleep(self.opening)
        self.is_open = True
        return self

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        self.is_open = False

    async def route(self, prompt: Any) -> Route:
        if "sort" in str(prompt):
            return Route("sort", 0.97, {"sort": 0.97, "reverse": 0.02, "base": 0.01})
        return Route(None, 0.6, {"base": 0.6, "sort": 0.3, "reverse": 0.1})

    def counters(self) -> EngineCounters:
        running = sum(not one.done for one in self.generations)
        submitted = len(self.generations)
        return EngineCounters(submitted, submitted - running, 0, 0, running, 0, 5, 9, 0, 0)


def _on_disk(name: str) -> PackStatus:
    return PackStatus(
        name=name, level="disk", bytes=None, pinned=False, in_use=0, hits=0, loads=0, load_seconds=None, evictions=0,
        proof=None, error=None,
    )  # fmt: skip


class SmallMemory:
    """Packs that are loaded by being named."""

    def __init__(self, names: Iterable[str] = ("sort", "reverse")) -> None:
        self._packs = {name: _on_disk(name) for name in names}

    @property
    def names(self) -> Collection[str]:
        return self._packs.keys()

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[None]:
        before = self._packs[name]
        if before.level == "disk":
            self._packs[name] = replace(before, level="memory", bytes=1000, loads=before.loads + 1, load_seconds=0.5)
        else:
            self._packs[name] = replace(before, hits=before.hits + 1)
        yield

    async def add(self, folder: str) -> str:
        if folder == "damaged":
            raise UserError("the pack in damaged is damaged")
        name = Path(folder).name
        self._packs[name] = _on_disk(name)
        return name

    async def remove(self, name: str) -> None:
        if self._packs[name].pinned:
            raise UserError(f"the pack '{name}' is pinned")
        del self._packs[name]

    async def pin(self, name: str) -> None:
        self._packs[name] = replace(self._packs[name], pinned=True)

    def unpin(self, name: str) -> None:
        self._packs[name] = replace(self._packs[name], pinned=False)

    def status(self) -> list[PackStatus]:
        return list(self._packs.values())


def small_service(engine: SmallEngine | None = None) -> EngineService:
    """A service of the packs `sort` and `reverse` with a router."""
    return EngineService(
        engine or SmallEngine(), SmallMemory(), limits=RequestLimits(), fingerprint="fp", routed=True, default="auto"
    )
