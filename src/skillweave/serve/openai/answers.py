"""The answers to one request while they are written: submitted together, watched, and given up if the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from skillweave.base.chat import text_of
from skillweave.base.thoughts import MARK_TOKENS, opened_thought, template_thought_markers
from skillweave.engine.interface import AnswerToken, CountedReply, Generation, RequestCancelled
from skillweave.errors import UserError
from skillweave.serve.errors import pack_not_loaded
from skillweave.serve.openai.call_reader import CallReader
from skillweave.serve.openai.event_stream import EventStream
from skillweave.serve.openai.parameters import until_disconnected
from skillweave.serve.openai.requests import Wanted
from skillweave.serve.openai.tools import WantedTools
from skillweave.serve.service import AnswerFigures, Resolved, Service
from skillweave.tools.call import Call

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class AnswerPiece:
    """A part of the answer ``index``: text and tokens, either of which may be empty."""

    index: int
    text: str
    tokens: tuple[AnswerToken, ...] = ()


@dataclass(frozen=True)
class Complete:
    """The answer ``index`` as a whole; ``text`` is what is not part of a call."""

    index: int
    text: str
    calls: tuple[Call, ...]
    reason: FinishReason
    reply: CountedReply


class ClientGone(Exception):
    """The client does not wait for its answer any more."""


class Answers:
    """The answers to the prompts of one request, ``n`` to each, in the order of the prompts.

    Use it as ``async with``: at the end of the block, what is still written is given up, and the pack is let go. A
    client that disconnects ends the answers too.
    """

    def __init__(self, service: Service, request: Request, model: str, resolved: Resolved, tools: WantedTools) -> None:
        self.model, self.resolved = model, resolved
        self._service, self._request, self._tools = service, request, tools
        self._stack = AsyncExitStack()
        self._written: list[_Written] = []
        self._gone = False

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the pack that answers."""
        return self._service.engine.tokenizer(self.resolved.pack)

    async def hold(self) -> None:
        """Hold the pack in memory from now until :meth:`close`. Raises :class:`ApiError` if it cannot be loaded."""
        try:
            await self._stack.enter_async_context(self._service.use(self.resolved.pack))
        except UserError as error:
            raise pack_not_loaded(self.resolved.name, error) from error

    async def submit(self, prompts: Sequence[Sequence[int]], wanted: Wanted) -> None:
        """Ask the engine for all answers. The seeds of the answers to one prompt follow each other.

        Raises the errors of the engine; then nothing is left in it.
        """
        tokenizer, form = self.tokenizer, self._tools.form
        if form is not None:
            await asyncio.to_thread(form.prepare, tokenizer)
        for prompt in prompts:
            opened = "" if self._tools.forced else _opened(tokenizer, prompt)
            for number in range(wanted.n):
                sampling = replace(wanted.sampling, seed=wanted.sampling.seed + number)
                generation = self._service.engine.submit(
                    prompt, self.resolved.pack, sampling, stop=wanted.stop, logprobs=wanted.logprobs, grammar=form
                )
                reader = CallReader(tokenizer, self._tools.described, opened) if self._tools.described else None
                self._written.append(_Written(self, len(self._written), generation, reader, may_stop=bool(wanted.stop)))
                self._service.observer.started(self.model, self.resolved)
        watcher = asyncio.create_task(self._watch())
        self._stack.push_async_callback(_ended, watcher)

    async def close(self) -> None:
        """Give up what is still written, and let the pack go."""
        self.cancel()
        await self._stack.aclose()

    def cancel(self) -> None:
        """Give up all answers that are not complete."""
        for one in self._written:
            one.give_up()

    async def all(self) -> list[Complete]:
        """Return all answers when they are complete, in their order. Raises :class:`ClientGone` and engine's errors."""
        complete = [event async for event in self.events() if isinstance(event, Complete)]
        return sorted(complete, key=lambda one: one.index)

    async def events(self) -> AsyncIterator[AnswerPiece | Complete]:
        """Yield the parts of all answers as they are written. Raises :class:`ClientGone` and the engine's errors."""
        try:
            if len(self._written) == 1:
                async for event in self._written[0].events():
                    yield event
                return
            async with contextlib.aclosing(_merged([one.events() for one in self._written])) as merged:
                async for event in merged:
                    yield event
        except RequestCancelled:
            if self._gone:
                raise ClientGone from None
            raise

    async def _watch(self) -> None:
        await until_disconnected(self._request)
        self._gone = True
        self.cancel()

    def told(self) -> dict[str, Any]:
        """What a response says about who answered."""
        return {"pack": self.resolved.name, "route": self.resolved.route, "confidence": self.resolved.confidence}

    def headers(self) -> dict[str, str]:
        """The headers that say who answered."""
        headers = {"x-skillweave-pack": self.resolved.name.encode("ascii", "replace").decode()}
        if self.resolved.confidence is not None:
            headers["x-skillweave-confidence"] = f"{self.resolved.confidence:.4f}"
        return headers

    @property
    def observer(self) -> Any:
        """Who is told of the answers."""
        return self._service.observer


async def answered(
    answers: Answers, events: AsyncIterator[str] | None, whole: Callable[[list[Complete]], str]
) -> Response:
    """Return the response to a request: the stream of ``events``, or without them what ``whole`` makes of the answers.

    ``whole`` gives JSON. The answers are closed when the response has been sent, or cannot be.
    """
    if events is not None:
        return EventStream(events, answers.close, answers.headers())
    try:
        complete = await answers.all()
    finally:
        await answers.close()
    return Response(whole(complete), media_type="application/json", headers=answers.headers())


class _Written:
    """One answer while it is written. Its observer is told of its end exactly once."""

    def __init__(
        self, answers: Answers, index: int, generation: Generation, reader: CallReader | None, *, may_stop: bool
    ) -> None:
        self._answers, self._index, self._generation = answers, index, generation
        self._reader, self._may_stop = reader, may_stop
        self._began = self._latest = time.perf_counter()
        self._first: float | None = None
        self._tokens = 0
        self._settled = False

    def give_up(self) -> None:
        self._generation.cancel()
        self._failed(RequestCancelled("the request was given up"))

    async def events(self) -> AsyncIterator[AnswerPiece | Complete]:
        """Yield the parts of the answer, and last the whole."""
        texts: list[str] = []
        try:
            async for chunk in self._generation.chunks():
                self._note(len(chunk.tokens))
                text = chunk.text if self._reader is None else self._reader.add(chunk, may_stop=self._may_stop)
                texts.append(text)
                if text or chunk.tokens:
                    yield AnswerPiece(self._index, text, chunk.tokens)
            reply = await self._generation.reply()
        except Exception as error:
            self._failed(error)
            raise
        calls: tuple[Call, ...] = ()
        if self._reader is not None:
            end = self._reader.end(reply)
            calls = end.calls
            texts.append(end.text)
            if end.text:
                yield AnswerPiece(self._index, end.text)
        reason: FinishReason = "length" if reply.ended == "length" else "tool_calls" if calls else "stop"
        if not self._settled:
            self._settled = True
            self._answers.observer.finished(self._figures(reply.prompt_tokens, reply.completion_tokens), reason)
        text = "".join(texts) if self._reader is not None else reply.text
        yield Complete(self._index, text, calls, reason, reply)

    def _note(self, tokens: int) -> None:
        if not tokens:
            return
        now, observer, resolved = time.perf_counter(), self._answers.observer, self._answers.resolved
        if self._first is None:
            self._first = now - self._began
            observer.first_token(resolved, self._first)
        else:
            observer.token(resolved, tokens, now - self._latest)
        self._latest = now
        self._tokens += tokens

    def _failed(self, error: BaseException) -> None:
        if not self._settled:
            self._settled = True
            self._answers.observer.failed(self._figures(0, self._tokens), error)

    def _figures(self, prompt_tokens: int, completion_tokens: int) -> AnswerFigures:
        seconds = time.perf_counter() - self._began
        return AnswerFigures(
            self._answers.model, self._answers.resolved, prompt_tokens, completion_tokens, seconds, self._first
        )


def _opened(tokenizer: Any, prompt: Sequence[int]) -> str:
    """Return the marker of the thought that a prompt opens at its end, or ""."""
    markers = template_thought_markers(tokenizer)
    return opened_thought(text_of(tokenizer, list(prompt[-MARK_TOKENS:]), special=True), markers) if markers else ""


async def _ended(task: asyncio.Task[None]) -> None:
    """End a task, and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})


async def _merged(
    streams: Sequence[AsyncIterator[AnswerPiece | Complete]],
) -> AsyncGenerator[AnswerPiece | Complete, None]:
    """Yield the events of several streams as they come. The first error is raised, and ends the others."""
    events: asyncio.Queue[AnswerPiece | Complete | BaseException | None] = asyncio.Queue()

    async def pump(stream: AsyncIterator[AnswerPiece | Complete]) -> None:
        try:
            async for event in stream:
                events.put_nowait(event)
            events.put_nowait(None)
        except Exception as error:
            events.put_nowait(error)

    tasks = {asyncio.create_task(pump(stream)) for stream in streams}
    try:
        running = len(tasks)
        while running:
            event = await events.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
