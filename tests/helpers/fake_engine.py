"""An engine that writes what a test tells it to, one token a step, and a service around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from skillweave.base import Sampling
from skillweave.base.chat import PromptOrIds, is_token_ids, prompt_ids
from skillweave.base.generate import AnswerReader
from skillweave.engine.generation import Pieces
from skillweave.engine.interface import (
    AnswerChunk,
    AnswerToken,
    CountedReply,
    EngineBusy,
    EngineCounters,
    Grammar,
    RequestCancelled,
)
from skillweave.errors import UserError
from skillweave.serve.errors import unknown_model
from skillweave.serve.service import AnswerFigures, ModelInfo, RequestLimits, Resolved
from skillweave.weave import Route


@dataclass
class Submitted:
    """One request as the engine got it."""

    prompt: list[int]
    pack: str | None
    sampling: Sampling
    stop: Sequence[str]
    logprobs: int | None
    grammar: Grammar | None
    text: str


class FakeGeneration:
    """Writes tokens that a function chooses, one at each turn of the event loop or each ``delay`` seconds."""

    def __init__(self, engine: FakeEngine, submitted: Submitted, choose: Callable[[int], int | None]) -> None:
        self._engine, self.submitted, self._choose = engine, submitted, choose
        self.cancelled = False
        self.written: list[AnswerToken] = []
        self._chunks: list[AnswerChunk] = []
        self._ended: str | None = None
        self._error: BaseException | None = None
        self._matched: str | None = None
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._write())

    @property
    def done(self) -> bool:
        return self._ended is not None or self._error is not None

    def cancel(self) -> None:
        if not self.done:
            self.cancelled = True
            self._error = RequestCancelled("cancelled")
            self._task.cancel()
            self._task = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _write(self) -> None:
        pieces = Pieces(AnswerReader(self._engine.tokenizer(None)))
        text, sent = "", 0
        stops = list(self.submitted.stop)
        try:
            for at in range(self.submitted.sampling.max_new_tokens):
                await asyncio.sleep(self._engine.delay)
                if self._engine.breaks is not None and at >= 2:
                    raise self._engine.breaks
                token = self._choose(at)
                if token is None:
                    self._ended = "answer"
                    text += pieces.rest()
                    break
                given = self.submitted.logprobs
                top = () if not given else tuple((token + step, -0.5 - step) for step in range(given))
                answer = AnswerToken(token, None if given is None else -0.5, top)
                self.written.append(answer)
                text += pieces.add([token])
                found = [(text.find(stop), stop) for stop in stops if stop in text]
                if found:
                    end, self._matched = min(found)
                    self._chunks.append(AnswerChunk(text[sent:end], (answer,)))
                    sent, self._ended = end, "answer"
                    text = text[:end]
                    break
                held = max((len(stop) - 1 for stop in stops), default=0)
                end = max(sent, len(text) - held)
                self._chunks.append(AnswerChunk(text[sent:end], (answer,)))
                sent = end
                await self._tell()
            else:
                self._ended = "length"
            self._chunks.append(AnswerChunk(text[sent:], ()))
            self.text = text
        except Exception as error:
            self._error = error
        await self._tell()

    async def chunks(self) -> AsyncIterator[AnswerChunk]:
        at = 0
        while True:
            while at < len(self._chunks):
                at += 1
                yield self._chunks[at - 1]
            if self._error is not None:
                raise self._error
            if self.done:
                return
            async with self._changed:
                await self._changed.wait_for(lambda seen=at: self.done or seen < len(self._chunks))

    async def reply(self) -> CountedReply:
        async for _ in self.chunks():
            pass
        count = len(self.written) + (self._ended == "answer" and self._matched is None)
        return CountedReply(
            self.text, self.submitted.pack, None, self._ended,  # type: ignore[arg-type]
            prompt_tokens=len(self.submitted.prompt), completion_tokens=count, tokens=tuple(self.written),
            matched=self._matched,
        )  # fmt: skip


@dataclass
class FakeEngine:
    """Answers with ``script(request)``: a text, or None for random tokens (within the request's grammar)."""

    the_tokenizer: Any
    script: Callable[[Submitted], str | None] = lambda asked: "Hello!"
    context: int | None = 4096
    delay: float = 0.0
    room: int = 100
    busy: float | None = None
    breaks: BaseException | None = None
    requests: list[Submitted] = field(default_factory=list)
    generations: list[FakeGeneration] = field(default_factory=list)
    route_to: Route | None = None

    @property
    def context_length(self) -> int | None:
        return self.context

    async def __aenter__(self) -> FakeEngine:
        return self

    async def __aexit__(self, *error: Any) -> None:
        for one in self.generations:
            one.cancel()

    def tokenizer(self, pack: str | None) -> Any:
        return self.the_tokenizer

    async def route(self, prompt: PromptOrIds) -> Route:
        if self.route_to is None:
            raise UserError("there is no router")
        return self.route_to

    def submit(
        self,
        prompt: PromptOrIds,
        pack: str | None,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> FakeGeneration:
        ids = list(prompt) if is_token_ids(prompt) else prompt_ids(self.the_tokenizer, prompt)
        if self.busy is not None:
            raise EngineBusy("too many requests wait", self.busy)
        if sum(not one.done for one in self.generations) >= self.room:
            raise EngineBusy("too many requests wait", 2.5)
        text = self.the_tokenizer.decode(ids)
        asked = Submitted(ids, pack, sampling, stop, logprobs, grammar, text)
        self.requests.append(asked)
        generation = FakeGeneration(self, asked, self._choice(asked))
        self.generations.append(generation)
        return generation

    def counters(self) -> EngineCounters:
        return EngineCounters(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

    def _choice(self, asked: Submitted) -> Callable[[int], int | None]:
        text = self.script(asked)
        end = self.the_tokenizer.eos_token_id
        if text is not None:
            ids = self.the_tokenizer(text, add_special_tokens=False)["input_ids"]
            return lambda at: ids[at] if at < len(ids) else None
        matcher = asked.grammar.matcher(self.the_tokenizer, [end]) if asked.grammar else None
        generator = torch.Generator().manual_seed(asked.sampling.seed % 2**63)

        def draw(at: int) -> int | None:
            scores = torch.randn(len(self.the_tokenizer), generator=generator)
            if matcher is not None:
                matcher.restrict(scores)
            token = int(scores.argmax())
            if matcher is not None:
                matcher.accept(token)
            return None if token == end else token

        return draw


@dataclass
class Noted:
    """An observer that keeps what it is told."""

    started_: int = 0
    finished_: list[tuple[AnswerFigures, str]] = field(default_factory=list)
    failed_: list[tuple[AnswerFigures, BaseException]] = field(default_factory=list)
    firsts: int = 0
    tokens: int = 0

    def started(self, model: str, resolved: Resolved) -> None:
        self.started_ += 1

    def first_token(self, resolved: Resolved, seconds: float) -> None:
        self.firsts += 1

    def token(self, resolved: Resolved, count: int, seconds: float) -> None:
        self.tokens += count

    def finished(self, figures: AnswerFigures, reason: str) -> None:
        self.finished_.append((figures, reason))

    def failed(self, figures: AnswerFigures, error: BaseException) -> None:
        self.failed_.append((figures, error))


@dataclass
class FakeService:
    """A service with a base ``base``, packs ``sort`` and ``json``, and ``auto``."""

    engine: FakeEngine
    limits: RequestLimits = RequestLimits(max_tokens=2000, default_max_tokens=400)  # noqa: RUF009
    observer: Noted = field(default_factory=Noted)
    fingerprint: str = "fp_test"
    held: list[str | None] = field(default_factory=list)

    def models(self) -> list[ModelInfo]:
        packs = [ModelInfo(name, "pack", 2, "base") for name in ("sort", "json")]
        return [ModelInfo("base", "base", 1), *packs, ModelInfo("auto", "auto", 1, "base")]

    async def resolve(self, model: str, prompt: PromptOrIds) -> Resolved:
        known = {one.id: one for one in self.models()}
        if model not in known:
            raise unknown_model(model, known)
        if known[model].kind == "auto":
            route = await self.engine.route(prompt)
            return Resolved(route.pack or "base", route.pack, "router", route.confidence)
        return Resolved(model, model if known[model].kind == "pack" else None)

    @contextlib.asynccontextmanager
    async def use(self, pack: str | None) -> AsyncIterator[None]:
        self.held.append(pack)
        try:
            yield
        finally:
            self.held.remove(pack)
