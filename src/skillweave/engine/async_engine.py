"""The local engine for many callers: their requests share the steps of one packed model, and join and leave freely.

Scheduling and the paged cache are those of transformers (:mod:`skillweave.engine.paged`). This file holds the queue in
front of them, and hands tokens back to the callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from skillweave.base import Sampling
from skillweave.base.chat import PromptOrIds
from skillweave.base.generate import AnswerReader, NoProbabilities, encode_prompts
from skillweave.base.sizes import context_length, embedding_rows
from skillweave.base.voice import Voice
from skillweave.engine import self_check
from skillweave.engine.generation import LiveGeneration
from skillweave.engine.interface import (
    CountedReply,
    EngineBusy,
    EngineCounters,
    Grammar,
    RequestCancelled,
    check_sampling,
)
from skillweave.engine.paged import PackedManager, PagedRow, StepEvent, StepTally
from skillweave.engine.sampler import RowSampler
from skillweave.engine.worker_threads import free_worker_threads
from skillweave.errors import UserError
from skillweave.progress import say_once
from skillweave.weave import AUTO, Route, Weave
from skillweave.weave.request_group import cannot_answer

Result = TypeVar("Result")

_CACHE_TOKENS = 8_192
"""The least room of the paged cache, in tokens."""
_PAGE = 32
"""The tokens of a block of the cache. Prefixes are shared in whole blocks, so small ones share more."""
_INSTEAD = "Answer with `skillweave generate`, which runs the model as it is, or serve another base."
_STEP_TOKENS = 512
"""While a prompt is read, running answers wait for it; a longer one is read in several steps, which they share."""


@dataclass(frozen=True)
class Speaker:
    """What a voice means for answers: its end tokens, its number of tokens, and the reader of its answers."""

    stops: frozenset[int]
    vocabulary: int
    reader: AnswerReader


@dataclass(eq=False)
class Work:
    """A request on its way through the engine. What is known only when the pack is known is None before."""

    generation: LiveGeneration
    prompt: PromptOrIds
    sampling: Sampling
    logprobs: int | None
    grammar: Grammar | None
    row: PagedRow | None = None
    ids: list[int] | None = None
    room: int = 0
    speaker: Speaker | None = None
    group: str | None = None
    """only requests of one group can share a step"""


class AsyncEngine:
    """Answers the requests of many callers with one weave: the engine ``local``.

    Use it as ``async with AsyncEngine(weave) as engine``, and call it from that event loop only. Leaving the block
    cancels all requests that wait or run, and waits for the thread that runs the model.

    - While the engine is open, the weave must answer through it alone. What else needs the model or changes its packs
      runs between two steps (:meth:`between_steps`).
    - ``max_requests``: the most requests that share a step; others wait in the queue
    - ``max_waiting``: the most requests that wait; None: any number
    - ``cache_tokens``: the tokens, of prompts and answers, whose keys and values are kept; None: 8,192, or the
      model's longest context if that is more
    - ``step_tokens``: the most tokens that a step reads of prompts

    An error of the model in a step fails the requests of this step, and the engine goes on.
    """

    name = "local"

    def __init__(
        self,
        weave: Weave,
        *,
        max_requests: int = 32,
        max_waiting: int | None = None,
        cache_tokens: int | None = None,
        step_tokens: int = _STEP_TOKENS,
    ) -> None:
        for name, value in (("max_requests", max_requests), ("step_tokens", step_tokens)):
            if value < 1:
                raise UserError(f"{name} is {value}: expected at least 1")
        self.weave = weave
        self.max_requests = max_requests
        self.max_waiting = max_waiting
        self.context_length = context_length(weave.base.model)
        self.cache_tokens = max(_CACHE_TOKENS, self.context_length or 0) if cache_tokens is None else cache_tokens
        self._step_tokens = step_tokens
        self._speakers: WeakKeyDictionary[Voice, Speaker] = WeakKeyDictionary()
        self._names = itertools.count()
        self._waiting: deque[Work] = deque()
        self._running: dict[PagedRow, Work] = {}
        self._routing: set[LiveGeneration] = set()
        self._submitted = self._finished = self._cancelled = self._failed = 0
        self._prompt_tokens = self._completion_tokens = 0
        self._opened_at = time.monotonic()
        self._manager: PackedManager | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncEngine:
        if self._manager is not None:
            raise RuntimeError("an AsyncEngine is opened once: make another one")
        self._loop = asyncio.get_running_loop()
        try:
            self._manager = PackedManager(
                self.weave.packed_model,
                max_requests=self.max_requests,
                step_tokens=self._step_tokens,
                cache_tokens=self.cache_tokens,
                page=_PAGE,
                deliver=lambda events: self._in_loop(self._receive, events),
            )
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise self._cannot_run(error) from error
        free_worker_threads()
        self._manager.start()
        try:
            await self._check_model()
        except BaseException:
            await asyncio.to_thread(self._manager.close)
            raise
        return self

    async def _check_model(self) -> None:
        """Raise :class:`UserError` for a model that steps do not compute as the model itself does."""
        model = self.weave.base.model
        prompts = self_check.probes(embedding_rows(model))
        sampling = Sampling(self_check.ROOM)
        generations = [self.submit(ids, None, sampling, logprobs=0) for ids in prompts]
        replies = await asyncio.gather(*(one.reply() for one in generations), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, NoProbabilities | UserError):
                raise reply
            if isinstance(reply, BaseException):
                raise self._cannot_run(reply) from reply
        written = [reply for reply in replies if isinstance(reply, CountedReply)]
        difference = await self.between_steps(lambda: self_check.largest_difference(model, prompts, written))
        if not self_check.near(model, difference):
            raise UserError(
                f"continuous batching of transformers does not compute {self.weave.base.ref} as the model itself "
                f"does: a log-probability differs by {difference:.2g} nats. {_INSTEAD}"
            )
        self._submitted = self._finished = self._prompt_tokens = self._completion_tokens = 0
        self._opened().tally = StepTally()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        closed = RequestCancelled("the engine was closed before the answer was complete")
        for generation in [work.generation for work in (*self._waiting, *self._running.values())] + [*self._routing]:
            generation.settle(error=closed)
        await asyncio.to_thread(self._opened().close)

    def _cannot_run(self, error: BaseException) -> UserError:
        why = f"{type(error).__name__}: {error}"
        return UserError(f"continuous batching of transformers cannot run {self.weave.base.ref} ({why}). {_INSTEAD}")

    # -- requests ------------------------------------------------------------------------------------------------------

    def tokenizer(self, pack: str | None) -> Any:
        """The tokenizer with which a loaded pack (None: the plain base) reads and writes."""
        return self.weave.voice(pack).tokenizer

    async def route(self, prompt: PromptOrIds) -> Route:
        """Let the router choose. Raises :class:`UserError` if there is no router, or the prompt is too long."""
        (route,) = await self.between_steps(lambda: self.weave.route([prompt]))
        return route

    def submit(
        self,
        prompt: PromptOrIds,
        pack: str | None,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> LiveGeneration:
        """Put a request into the queue and return it, as :class:`~skillweave.engine.interface.Engine` says.

        ``pack`` may also be :data:`~skillweave.weave.AUTO`: the router chooses between two steps. If the task that
        calls it is cancelled, the request is cancelled too.
        """
        self._opened()
        if self._closed:
            raise RequestCancelled("the engine is closed")
        check_sampling(sampling)
        if self.max_waiting is not None and len(self._waiting) + len(self._routing) >= self.max_waiting:
            raise EngineBusy(f"{self.max_waiting} requests wait already", retry_after=self._retry_after())
        generation = LiveGeneration(stop, asyncio.current_task(), self._settled)
        work = Work(generation, prompt, sampling, logprobs, grammar)
        if pack == AUTO:
            self.weave.route([])  # raises the error of a weave without a router
            self._prepare(work, Route(None, None))  # the router reads it as the base does
            self._routing.add(generation)
            self._submitted += 1
            self._loop.create_task(self._route_and_queue(work))
            return generation
        (route,) = self.weave.choose([prompt], [pack])
        self._prepare(work, route)
        self._submitted += 1
        self._waiting.append(work)
        self._admit()
        return generation

    async def between_steps(self, job: Callable[[], Result]) -> Result:
        """Run a short function in the engine's thread, while no step runs, and return its result."""
        if self._closed:
            raise RequestCancelled("the engine is closed")
        return await asyncio.wrap_future(self._opened().between_steps(job))

    def forget(self, pack: str) -> None:
        """Share no cached prefix with an earlier pack of this name. Call it when a pack leaves the weave."""
        self._opened().readers.forget(pack)

    def counters(self) -> EngineCounters:
        """Return what the engine has done so far."""
        tally = self._opened().tally
        return EngineCounters(
            submitted=self._submitted,
            finished=self._finished,
            cancelled=self._cancelled,
            failed=self._failed,
            running=len(self._running),
            waiting=len(self._waiting) + len(self._routing),
            steps=tally.steps,
            step_tokens=tally.tokens,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )

    def _retry_after(self) -> float:
        """A guess at the seconds until there is room in the queue: at the rate so far, one request later."""
        rate = self._finished / (time.monotonic() - self._opened_at)
        return min(60.0, max(1.0, 1 / rate if rate else 1.0))

    # -- in the event loop ---------------------------------------------------------------------------------------------

    def _opened(self) -> PackedManager:
        if self._manager is None:
            raise RuntimeError("open the engine first: async with AsyncEngine(weave) as engine")
        return self._manager

    def _prepare(self, work: Work, route: Route) -> None:
        """Turn a request into tokens. Raises :class:`UserError` for a prompt that does not fit into the context."""
        weave, sampling = self.weave, work.sampling
        voice = weave.voice(route.pack)
        (ids,) = encode_prompts(weave.base.model, weave.base.tokenizer, [work.prompt], [voice])
        limit = min(self.context_length or math.inf, self.cache_tokens)
        if len(ids) >= limit:
            raise UserError(f"the prompt has {len(ids)} tokens, and the engine's cache has room for {limit}")
        speaker = self._speaker(voice)
        work.ids, work.room = ids, int(min(sampling.max_new_tokens, limit - len(ids)))
        work.speaker = speaker
        alone = route.pack is not None and weave.packed_model.why_own_steps(route.pack) is not None
        work.group = route.pack if alone else None
        matcher = None if work.grammar is None else work.grammar.matcher(voice.tokenizer, speaker.stops)
        sampler = RowSampler(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            vocabulary=speaker.vocabulary,
            device=weave.base.model.device,
        )
        by_base = weave.backbone_tokens(route.pack, ids)
        work.row = PagedRow(f"request-{next(self._names)}", route.pack, by_base, sampler, work.logprobs, matcher)
        work.generation.begin(ids, route, speaker.reader)

    def _speaker(self, voice: Voice) -> Speaker:
        if voice not in self._speakers:
            model = self.weave.base.model
            stops, reader = frozenset(voice.stops(model)), AnswerReader(voice.tokenizer)
            self._speakers[voice] = Speaker(stops, voice.vocabulary(model), reader)
        return self._speakers[voice]

    async def _route_and_queue(self, work: Work) -> None:
        generation = work.generation
        try:
            route = await self.route(work.prompt)
            if not generation.done:
                self.weave.choose([work.prompt], [route.pack])
                self._prepare(work, route)
        except Exception as error:
            generation.settle(error=error)
            return
        if not generation.done:
            self._routing.discard(generation)
            self._waiting.append(work)
            self._admit()

    def _admit(self) -> None:
        """Let waiting requests take part in the next step, in their order, as long as there is room.

        A request whose pack cannot share steps with others waits until no other runs; those behind it wait too, so
        that it is not overtaken for ever.
        """
        while self._waiting and len(self._running) < self.max_requests:
            work = self._waiting[0]
            groups = {running.group for running in self._running.values()}
            if groups and groups != {work.group}:
                pack = work.group or next(iter(groups))
                assert pack is not None
                why = self.weave.packed_model.why_own_steps(pack) if pack in self.weave.loaded else None
                say_once(f"The pack '{pack}' answers in steps of its own: {why}.")
                return
            self._waiting.popleft()
            pack = None if work.row is None else work.row.pack
            try:
                self.weave.choose([work.prompt], [pack])
            except UserError as error:  # its pack was unloaded while it waited
                work.generation.settle(error=error)
                continue
            assert work.row is not None
            assert work.ids is not None
            assert work.speaker is not None
            self._running[work.row] = work
            self._prompt_tokens += len(work.ids)
            self._opened().add(work.row, work.ids, sorted(work.speaker.stops), work.room)

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the event loop, from the manager's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nobody left who waits
            self._loop.call_soon_threadsafe(function, *args)

    def _receive(self, events: list[StepEvent]) -> None:
        for event in events:
            work = self._running.get(event.row)
            if work is None:
                continue
            assert work.speaker is not None
            if event.error is not None:
                work.generation.settle(error=self._failure(event))
                continue
            self._completion_tokens += 1
            ends = event.token is not None and event.token.id in work.speaker.stops
            if ends:
                work.generation.take(None, "answer")
            else:
                work.generation.take(event.token, "length" if event.ended else None)

    def _failure(self, event: StepEvent) -> BaseException:
        if isinstance(event.error, NoProbabilities):
            failure = cannot_answer(event.row.pack, event.error)
            failure.__cause__ = event.error
            return failure
        assert event.error is not None
        return event.error

    def _settled(self, generation: LiveGeneration) -> None:
        """Count a request that has ended, take it out of the queue or the steps, and let others in."""
        if isinstance(generation.error, RequestCancelled):
            self._cancelled += 1
        elif generation.error is not None:
            self._failed += 1
        else:
            self._finished += 1
        self._routing.discard(generation)
        for work in [work for work in self._waiting if work.generation is generation]:
            self._waiting.remove(work)
        for row in [row for row, work in self._running.items() if work.generation is generation]:
            del self._running[row]
            self._opened().drop(row.name)
        if not self._closed:
            self._admit()
