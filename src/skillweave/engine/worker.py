"""The thread that runs the model: it takes waiting requests from a queue, batch by batch.

Which requests form the next batch is decided in :func:`next_batch`. A request never waits for more batches than there
are requests before it, because the oldest one is always in the next batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from skillweave.base.generate import context_length
from skillweave.engine.batch import Deliver, Event, Prepared, Preparer, Tally, Work, answer_batch
from skillweave.errors import UserError
from skillweave.progress import say_once
from skillweave.weave import Weave

_LOOK_AHEAD = 4
"""A batch is chosen among the oldest requests of its group, this many times ``batch_size``."""


def next_batch(waiting: Sequence[Prepared], batch_size: int, limit: int | None) -> list[int]:
    """Return the indices of the requests that form the next batch; ``waiting`` has at least one, the oldest first.

    - The oldest request is always among them. Requests of another group wait.
    - If more wait than fit, those are taken whose prompt and room are nearest to those of the oldest: all rows are
      padded to the longest prompt and computed for as long as the longest answer.
    - The longest prompt and the largest room together fit into the model's context of ``limit`` tokens (None: there is
      no limit). Otherwise rows that have ended would run beyond the positions that the model has.
    """
    oldest = waiting[0]

    def distance(index: int) -> int:
        one = waiting[index]
        return abs(len(one.ids) - len(oldest.ids)) + abs(one.room - oldest.room)

    others = [index for index in range(1, len(waiting)) if waiting[index].group == oldest.group]
    if len(others) >= batch_size:
        others = sorted(others[: _LOOK_AHEAD * batch_size], key=distance)
    chosen, length, room = [0], len(oldest.ids), oldest.room
    for index in others:
        if len(chosen) == batch_size:
            break
        longer, larger = max(length, len(waiting[index].ids)), max(room, waiting[index].room)
        if limit is None or longer + larger <= limit:
            chosen.append(index)
            length, room = longer, larger
    return chosen


class Worker:
    """A thread that answers requests until it is stopped.

    - ``gather``: seconds to wait for more requests when fewer than ``batch_size`` wait, so that a burst of requests
      shares one batch
    - ``deliver(events)`` is called in the thread
    - ``died(error)`` is called in the thread if it ends by an error of its own; :attr:`error` is then set
    """

    def __init__(
        self,
        weave: Weave,
        preparer: Preparer,
        *,
        batch_size: int,
        gather: float,
        deliver: Deliver,
        died: Callable[[BaseException], None],
    ) -> None:
        self._weave, self._preparer = weave, preparer
        self._batch_size, self._gather = batch_size, gather
        self._deliver, self._died = deliver, died
        self._limit = context_length(weave.base.model)
        self._changed = threading.Condition()
        self._waiting: list[Work] = []
        self._stopping = False
        self.error: BaseException | None = None
        self.tally = Tally()
        # As a daemon it does not keep a process alive whose event loop is gone.
        self._thread = threading.Thread(target=self._run, name="skillweave-engine", daemon=True)

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, work: Work) -> None:
        """Put a request at the end of the queue."""
        with self._changed:
            self._waiting.append(work)
            self._changed.notify()

    def withdraw(self, work: Work) -> None:
        """Remove a request from the queue if it still waits there."""
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)

    def stop(self) -> None:
        """End the thread after the batch that it is running."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._burst():
                self._route()
                if batch := self._take():
                    self._answer(batch)
        except BaseException as error:
            self.error = error
            self._died(error)

    def _burst(self) -> bool:
        """Wait for requests, and a little longer for more of them. Return whether the thread goes on."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            until = time.monotonic() + self._gather
            while len(self._waiting) < self._batch_size and not self._stopping:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    break
            return not self._stopping

    def _route(self) -> None:
        """Let the router choose the packs of the oldest requests that have none yet."""
        with self._changed:
            works = [work for work in self._waiting if work.prepared is None][: self._batch_size]
        if not works:
            return
        try:
            self._prepare(works)
        except Exception:  # one of them is to blame: the others must not fail with it
            for work in works:
                try:
                    self._prepare([work])
                except Exception as error:
                    self.withdraw(work)
                    self._fail([work], error)

    def _prepare(self, works: Sequence[Work]) -> None:
        routes = self._weave.choose([work.prompt for work in works], [work.pack for work in works])
        for work, route in zip(works, routes, strict=True):
            work.prepared = self._preparer.prepare(work.prompt, route, work.sampling)

    def _take(self) -> list[tuple[Work, Prepared]]:
        """Remove the requests of the next batch from the queue and return them."""
        with self._changed:
            ready = [(work, work.prepared) for work in self._waiting if work.prepared is not None]
            if not ready:
                return []
            chosen = next_batch([prepared for _, prepared in ready], self._batch_size, self._limit)
            batch = [ready[index] for index in chosen]
            taken = {id(work) for work, _ in batch}
            self._waiting = [work for work in self._waiting if id(work) not in taken]
        group = batch[0][1].group
        if group is not None and len(batch) < len(ready):
            say_once(f"The pack '{group}' answers in batches of its own: {self._weave.packed_model.why_alone(group)}.")
        return batch

    def _answer(self, batch: list[tuple[Work, Prepared]]) -> None:
        loaded: list[tuple[Work, Prepared]] = []
        for work, prepared in batch:
            if work.cancelled:
                continue
            try:
                self._weave.choose([work.prompt], [prepared.route.pack])
                loaded.append((work, prepared))
            except UserError as error:  # its pack was unloaded while it waited
                self._fail([work], error)
        if not loaded:
            return
        try:
            answer_batch(self._weave, loaded, self._deliver, self.tally)
        except Exception as error:
            self._fail([work for work, _ in loaded], error)  # those that have ended stay as they are

    def _fail(self, works: Sequence[Work], error: BaseException) -> None:
        self._deliver([Event(work, error=error) for work in works])
