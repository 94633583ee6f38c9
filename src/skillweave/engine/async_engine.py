"""The asynchronous engine: many callers submit requests, and share the batches of one model."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from skillweave.base import Sampling
from skillweave.base.chat import PromptOrIds
from skillweave.engine.batch import Event, Preparer, Work
from skillweave.engine.generation import Generation, RequestCancelled
from skillweave.engine.worker import Worker
from skillweave.errors import UserError, shown_value
from skillweave.weave import AUTO, Route, Weave


@dataclass(frozen=True)
class EngineCounters:
    """What an engine has done since it was opened.

    - ``submitted`` = ``finished`` + ``cancelled`` + ``failed`` + those that still wait or run; ``waiting`` is the
      length of the queue
    - ``batches``, ``batch_size``, ``rows``: batches started, the most rows of one, and the rows of all of them
    - ``row_steps``: the rows of a batch, added up over its steps
    - ``prompt_tokens``, ``completion_tokens``: of the rows that were started; end tokens count
    """

    submitted: int
    finished: int
    cancelled: int
    failed: int
    waiting: int
    batches: int
    batch_size: int
    rows: int
    row_steps: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def capacity(self) -> int:
        """The rows that all batches could have had."""
        return self.batches * self.batch_size

    @property
    def fill(self) -> float:
        """The share of :attr:`capacity` that was used, over all batches; 1 if there was no batch."""
        return self.rows / self.capacity if self.batches else 1.0

    @property
    def useful(self) -> float:
        """The share of the row steps that gave a token of an answer.

        The rest was computed for rows that had ended before the last row of their batch, and for cancelled ones.
        """
        return self.completion_tokens / self.row_steps if self.row_steps else 1.0


class AsyncEngine:
    """Answers the requests of many callers with one weave, in shared batches.

    Use it as ``async with AsyncEngine(weave) as engine``, and call it from that event loop only. Leaving the block
    cancels all requests that wait or run (a running row ends at its next step), and waits for the worker thread.

    - One thread runs the model. While the engine is open, the weave must answer through it alone.
    - ``batch_size``: the most rows of one batch
    - ``gather``: seconds that the worker waits for more requests when fewer than ``batch_size`` wait. The default of
      5 ms lets a burst of requests share a batch, and is short beside the time of an answer.

    An error of the model while it runs a batch fails the requests of this batch, and the engine goes on. An error of
    the worker itself fails all requests, and the engine takes no more.
    """

    def __init__(self, weave: Weave, *, batch_size: int = 32, gather: float = 0.005) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}: expected at least 1")
        self.weave = weave
        self.batch_size = batch_size
        self._gather = gather
        self._preparer = Preparer(weave)
        self._open: dict[Work, Generation] = {}
        self._submitted = self._finished = self._cancelled = self._failed = 0
        self._worker: Worker | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncEngine:
        if self._worker is not None:
            raise RuntimeError("an AsyncEngine is opened once: make another one")
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(
            self.weave,
            self._preparer,
            batch_size=self.batch_size,
            gather=self._gather,
            deliver=lambda events: self._in_loop(self._receive, events),
            died=self._worker_died,
        )
        self._worker.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._worker is not None
        self._closed = True
        for generation in list(self._open.values()):
            generation.settle(error=RequestCancelled("the engine was closed before the answer was complete"))
        self._worker.stop()
        await asyncio.to_thread(self._worker.join)

    def submit(self, prompt: PromptOrIds, pack: str | None, sampling: Sampling) -> Generation:
        """Put a request into the queue and return it; it does not wait.

        - ``pack``: a pack's name, :data:`~skillweave.weave.AUTO` (the router chooses, in the worker thread), or None
          for the plain base
        - ``sampling``: of this request alone; its draws depend on its own ``seed`` and not on the other requests.
          ``batch_size`` is not used.

        If the task that calls it is cancelled, the request is cancelled too. Raises :class:`UserError` at once for a
        pack that is unknown or not loaded, a prompt that does not fit into the context, and a sampling that no token
        can be drawn by; :class:`RequestCancelled` if the engine is closed.
        """
        if self._worker is None:
            raise RuntimeError("open the engine first: async with AsyncEngine(weave) as engine")
        if self._closed:
            raise RequestCancelled("the engine is closed")
        if self._worker.error is not None:
            raise RuntimeError("the engine's worker has failed; open a new engine") from self._worker.error
        _check_sampling(sampling)
        work = Work(prompt, pack, sampling)
        if pack == AUTO:
            self.weave.route([])  # raises the error of a weave without a router
            self._preparer.prepare(prompt, Route(None, None), sampling)  # the router reads it as the base does
        else:
            (route,) = self.weave.choose([prompt], [pack])
            work.prepared = self._preparer.prepare(prompt, route, sampling)
        generation = Generation(work, asyncio.current_task(), self._settled)
        self._open[work] = generation
        self._submitted += 1
        self._worker.put(work)
        return generation

    def counters(self) -> EngineCounters:
        """Return what the engine has done so far."""
        if self._worker is None:
            raise RuntimeError("open the engine first: async with AsyncEngine(weave) as engine")
        tally = self._worker.tally
        return EngineCounters(
            submitted=self._submitted,
            finished=self._finished,
            cancelled=self._cancelled,
            failed=self._failed,
            waiting=self._worker.waiting,
            batches=tally.batches,
            batch_size=self.batch_size,
            rows=tally.rows,
            row_steps=tally.row_steps,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
        )

    # -- in the event loop ---------------------------------------------------------------------------------------------

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the event loop, from the worker thread. Raises RuntimeError if the loop is closed."""
        self._loop.call_soon_threadsafe(function, *args)

    def _receive(self, events: list[Event]) -> None:
        for event in events:
            if (generation := self._open.get(event.work)) is not None:
                generation.take(event)

    def _worker_died(self, error: BaseException) -> None:
        # If the loop is closed, there is nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._in_loop(self._fail_all, error)

    def _fail_all(self, error: BaseException) -> None:
        for generation in list(self._open.values()):
            generation.settle(error=error)

    def _settled(self, generation: Generation) -> None:
        """Count a request that has ended, and take it from the worker if it was cancelled."""
        assert self._worker is not None
        del self._open[generation.work]
        if isinstance(generation.error, RequestCancelled):
            self._cancelled += 1
            generation.work.cancelled = True
            self._worker.withdraw(generation.work)
        elif generation.error is not None:
            self._failed += 1
        else:
            self._finished += 1


def _check_sampling(sampling: Sampling) -> None:
    """Raise :class:`UserError` for a sampling that one row of a batch cannot be drawn by."""
    if sampling.samples != 1:
        raise UserError(f"a request has one answer, not {sampling.samples}: submit it again for each sample")
    if sampling.model_defaults:
        raise UserError("the asynchronous engine has no model defaults: give a temperature and a top_p")
    for name, fits, expected in (
        ("max_new_tokens", sampling.max_new_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature < math.inf, "0 or more"),
        ("top_p", 0 <= sampling.top_p <= 1, "a number from 0 to 1"),
    ):
        if not fits:
            raise UserError(f"{name} is {shown_value(getattr(sampling, name))}: expected {expected}")
