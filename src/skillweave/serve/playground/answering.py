"""Ask the engine for one answer, and follow it while it is written: who answers, the text so far, how fast it came."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from skillweave.base import Sampling
from skillweave.engine.interface import AnswerChunk, CountedReply, Generation
from skillweave.errors import UserError
from skillweave.serve.admission import Admission
from skillweave.serve.service import AnswerFigures, Resolved, Service

_SHOWN_EVERY = 0.05
"""Seconds between two states of an answer: a page that is told of every token would be busier than the model."""

_CLOSED = {"starting": "the model is still being loaded: ask again in a moment", "stopping": "the server is stopping"}


@dataclass(frozen=True)
class AnswerState:
    """An answer so far.

    - ``scores``: the router's probability of each pack; empty if a person chose
    - ``first_token``: seconds since the engine took the request, or None if there is no token yet
    - ``ended``: how it ended, or None while it is written
    """

    resolved: Resolved
    scores: Mapping[str, float]
    text: str = ""
    tokens: int = 0
    first_token: float | None = None
    seconds: float = 0.0
    ended: str | None = None

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first one; None if there are too few to tell."""
        if self.first_token is None or self.tokens < 2 or self.seconds <= self.first_token:
            return None
        return (self.tokens - 1) / (self.seconds - self.first_token)


async def answer(
    service: Service, admission: Admission, model: str, messages: Sequence[dict[str, str]], sampling: Sampling
) -> AsyncGenerator[AnswerState, None]:
    """Yield the states of an answer, the last one complete. Leaving it gives the answer up.

    Raises what the engine raises, and :class:`UserError` while the server takes no requests and for an answer that is
    longer than it allows, and :class:`~skillweave.serve.errors.ApiError` if too many answers are being written. The
    answer counts among those, so a server that stops waits for it.
    """
    if admission.state != "open":
        raise UserError(_CLOSED[admission.state])
    longest = service.limits.max_tokens
    if not 1 <= sampling.max_new_tokens <= longest:
        raise UserError(f"the longest answer is {sampling.max_new_tokens} tokens: expected 1 to {longest}")
    if admission.full is not None:
        raise admission.full
    with _counted(admission) as counted:
        resolved, scores = await _decide(service, model, messages)
        async with service.use(resolved.pack):
            generation = service.engine.submit(list(messages), resolved.pack, sampling)
            counted.add_done_callback(lambda _: generation.cancel())
            watch = _Watch(service, model, resolved)
            try:
                yield AnswerState(resolved, scores)
                async with contextlib.aclosing(_states(generation, watch, resolved, scores)) as states:
                    async for state in states:
                        yield state
            except BaseException as error:
                generation.cancel()
                watch.failed(error)
                raise


@contextlib.contextmanager
def _counted(admission: Admission) -> Iterator[asyncio.Future[None]]:
    """Context in which an answer counts among those that run; the future is cancelled if the server gives it up.

    It is no task: the tasks belong to Gradio, which runs other work in them.
    """
    answer = asyncio.get_running_loop().create_future()
    admission.enter(answer)
    try:
        yield answer
    finally:
        admission.leave(answer)


async def _decide(
    service: Service, model: str, messages: Sequence[dict[str, str]]
) -> tuple[Resolved, Mapping[str, float]]:
    """Return who answers, and the router's probabilities if it was the router who chose."""
    known = service.models()
    if any(one.id == model and one.kind == "auto" for one in known):
        route = await service.engine.route(list(messages))
        base = next(one.id for one in known if one.kind == "base")
        return Resolved(route.pack or base, route.pack, "router", route.confidence), route.scores
    return await service.resolve(model, list(messages)), {}


async def _states(
    generation: Generation, watch: _Watch, resolved: Resolved, scores: Mapping[str, float]
) -> AsyncGenerator[AnswerState, None]:
    text, shown = "", 0.0

    def state(ended: str | None = None) -> AnswerState:
        return AnswerState(resolved, scores, text, watch.tokens, watch.first, watch.seconds(), ended)

    async for chunk in generation.chunks():
        watch.note(chunk)
        text += chunk.text
        if chunk.text and time.perf_counter() - shown >= _SHOWN_EVERY:
            yield state()
            shown = time.perf_counter()
    reply = await generation.reply()
    text = reply.text
    watch.finished(reply)
    yield state("cut off" if reply.ended == "length" else "complete")


@dataclass
class _Watch:
    """Counts the tokens of one answer, and tells the server's observer of them, and once of the end."""

    service: Service
    model: str
    resolved: Resolved
    tokens: int = 0
    first: float | None = None
    _began: float = field(default_factory=time.perf_counter)
    _latest: float = 0.0
    _settled: bool = False

    def __post_init__(self) -> None:
        self.service.observer.started(self.model, self.resolved)

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def note(self, chunk: AnswerChunk) -> None:
        if not chunk.tokens:
            return
        now, count = self.seconds(), len(chunk.tokens)
        if self.first is None:
            self.first = now
            self.service.observer.first_token(self.resolved, now)
            if count > 1:
                self.service.observer.token(self.resolved, count - 1, 0.0)
        else:
            self.service.observer.token(self.resolved, count, now - self._latest)
        self._latest = now
        self.tokens += count

    def finished(self, reply: CountedReply) -> None:
        self._settled = True
        figures = self._figures(reply.prompt_tokens, reply.completion_tokens)
        self.service.observer.finished(figures, "length" if reply.ended == "length" else "stop")

    def failed(self, error: BaseException) -> None:
        if not self._settled:
            self._settled = True
            self.service.observer.failed(self._figures(0, self.tokens), error)

    def _figures(self, prompt_tokens: int, completion_tokens: int) -> AnswerFigures:
        return AnswerFigures(self.model, self.resolved, prompt_tokens, completion_tokens, self.seconds(), self.first)
