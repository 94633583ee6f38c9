"""An engine without a model, packs without bytes and a small API, for tests of what stands around the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from skillweave.engine.interface import AnswerToken, Chunk, CountedReply, EngineCounters, RequestCancelled
from skillweave.errors import UserError
from skillweave.serve.local_service import LocalService
from skillweave.serve.service import AnswerFigures, Limits, Resolved
from skillweave.weave import Route


class FakeGeneration:
    """Writes the words of an answer, one every ``pause`` seconds; ``words`` counts those that were written."""

    def __init__(self, engine: FakeEngine, pack: str | None, words: list[str]) -> None:
        self._engine, self._pack, self._words = engine, pack, words
        self.done = False
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self._end()

    def _end(self) -> None:
        if not self.done:
            self.done = True
            self._engine.running.discard(self)
            self._engine.ended += 1

    async def chunks(self) -> AsyncIterator[Chunk]:
        try:
            for word in self._words:
                await asyncio.sleep(self._engine.pause)
                if self.cancelled:
                    raise RequestCancelled("cancelled")
                if word == "fail":
                    raise RuntimeError("the model has failed")
                yield Chunk(word, (AnswerToken(1),))
        finally:
            self.cancelled = self.cancelled or word != self._words[-1]
            self._end()

    async def reply(self) -> CountedReply:
        text = "".join([chunk.text async for chunk in self.chunks()])
        return CountedReply(text, self._pack, None, "answer", prompt_tokens=3, completion_tokens=len(self._words) + 1)


class FakeEngine:
    """Answers every prompt with ``answer``; the router sends prompts with "sort" to the pack `sort`.

    ``opening``: seconds until it is open, or the error of opening it
    """

    context_length = 1000

    def __init__(self, answer: str = "one two three", pause: float = 0.0, opening: float | Exception = 0.0) -> None:
        self.answer, self.pause, self.opening = answer, pause, opening
        self.running: set[FakeGeneration] = set()
        self.generations: list[FakeGeneration] = []
        self.ended = 0
        self.is_open = False

    async def __aenter__(self) -> FakeEngine:
        if isinstance(self.opening, Exception):
            raise self.opening
        await asyncio.sleep(self.opening)
        self.is_open = True
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.is_open = False

    def tokenizer(self, pack: str | None) -> Any:
        raise NotImplementedError

    async def route(self, prompt: Any) -> Route:
        return Route("sort", 0.97) if "sort" in str(prompt) else Route(None, 0.6)

    def submit(self, prompt: Any, pack: str | None, sampling: Any, **_: Any) -> FakeGeneration:
        words = [f"{word} " for word in self.answer.split()]
        generation = FakeGeneration(self, pack, ["fail"] if self.answer == "fail" else words)
        self.running.add(generation)
        self.generations.append(generation)
        return generation

    def counters(self) -> EngineCounters:
        return EngineCounters(
            submitted=len(self.generations), finished=self.ended, cancelled=0, failed=0, running=len(self.running),
            waiting=0, steps=5, step_tokens=9, prompt_tokens=0, completion_tokens=0,
        )  # fmt: skip


@dataclass(frozen=True)
class FakeStatus:
    """The status of a pack, as in the pack memory."""

    name: str
    level: str = "disk"
    bytes: int = 0
    pinned: bool = False
    in_use: int = 0
    hits: int = 0
    loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0


class FakeMemory:
    """Packs that are loaded by being named."""

    def __init__(self, names: Iterable[str] = ("sort", "reverse")) -> None:
        self._packs = {name: FakeStatus(name) for name in names}

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[None]:
        before = self._packs[name]
        if before.level == "disk":
            self._packs[name] = replace(before, level="memory", bytes=1000, loads=before.loads + 1, load_seconds=0.5)
        else:
            self._packs[name] = replace(before, hits=before.hits + 1)
        yield

    async def add(self, name: str, folder: str) -> None:
        if folder == "damaged":
            raise UserError("the pack in damaged is damaged")
        self._packs[name] = FakeStatus(name)

    async def remove(self, name: str) -> None:
        if self._packs[name].pinned:
            raise UserError(f"the pack '{name}' is pinned")
        del self._packs[name]

    async def pin(self, name: str, pinned: bool) -> None:
        self._packs[name] = replace(self._packs[name], pinned=pinned)

    def status(self) -> list[FakeStatus]:
        return list(self._packs.values())


def fake_service(engine: FakeEngine | None = None, **limits: Any) -> LocalService:
    """A service of the packs `sort` and `reverse` with a router."""
    return LocalService(
        engine or FakeEngine(), FakeMemory(), limits=Limits(**limits), fingerprint="fp", routed=True, default="auto"
    )


def small_api(service: LocalService) -> APIRouter:
    """The least of OpenAI's API: models, and chat completions with and without a stream."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        data = [{"id": one.id, "object": "model", "created": 0, "owned_by": "skillweave"} for one in service.models()]
        return {"object": "list", "data": data}

    @router.post("/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        resolved = await service.resolve(body["model"], body["messages"])
        if body.get("stream"):
            return StreamingResponse(events(resolved, body), media_type="text/event-stream")
        text = "".join([piece async for piece in answer(resolved, body)])
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "model": body["model"]}

    async def answer(resolved: Resolved, body: Any) -> AsyncIterator[str]:
        began = time.perf_counter()
        latest, words, first = began, 0, None
        service.observer.started(body["model"], resolved)

        def figures(prompt_tokens: int) -> AnswerFigures:
            return AnswerFigures(body["model"], resolved, prompt_tokens, words, time.perf_counter() - began, first)

        try:
            async with service.use(resolved.pack):
                async for chunk in service.engine.submit(body["messages"], resolved.pack, None).chunks():  # type: ignore
                    now, words = time.perf_counter(), words + 1
                    if first is None:
                        first = now - began
                        service.observer.first_token(resolved, first)
                    else:
                        service.observer.token(resolved, 1, now - latest)
                    latest = now
                    yield chunk.text
        except BaseException as error:
            service.observer.failed(figures(0), error)
            raise
        service.observer.finished(figures(3), "stop")

    async def events(resolved: Resolved, body: Any) -> AsyncIterator[bytes]:
        base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
        told = {"pack": resolved.name, "confidence": resolved.confidence}
        words = 0
        async for text in answer(resolved, body):
            words += 1
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            yield f"data: {json.dumps({**base, 'skillweave': told, 'choices': [choice]})}\n\n".encode()
        usage = {"prompt_tokens": 3, "completion_tokens": words, "total_tokens": words + 3}
        yield f"data: {json.dumps({**base, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()

    return router
