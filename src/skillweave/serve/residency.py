"""Which packs of a weave are in memory: under a byte budget, the packs that were not used for longest leave first.

All of it runs in one event loop. Files are read in a thread, and only the short last part of a load runs between two
steps of the engine, so no request for a pack in memory waits for the load of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from skillweave.engine.worker_threads import beside_steps
from skillweave.errors import UserError, nearest, shown_value
from skillweave.pack.probe import Outcome
from skillweave.units import human_bytes
from skillweave.weave import Weave
from skillweave.weave.kept import ReadPack

Level = Literal["memory", "loading", "disk", "failed"]
T = TypeVar("T")


class BetweenSteps(Protocol):
    """Runs a short function in the engine's thread, between two steps, and returns what it returns."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True)
class PackStatus:
    """Where a pack is, and what was done with it since the server started.

    - ``bytes``: what it takes in memory now; on the disk, the most that it takes there, or None if it was never loaded
    - ``in_use``: requests that use it now
    - ``hits``: uses that found it in memory; ``loads``: how often it was loaded; ``load_seconds``: the last time
    - ``evictions``: how often it made room for others
    - ``proof``: "proven" if it was proven that the pack acts (:mod:`skillweave.weave.prove`); "too small" if its
      change is too small to tell; None if it was never loaded, or its card has no probe
    - ``error``: why it could not be loaded the last time
    """

    name: str
    level: Level
    bytes: int | None
    pinned: bool
    in_use: int
    hits: int
    loads: int
    load_seconds: float | None
    evictions: int
    proof: Outcome | None
    error: str | None


@dataclass(eq=False)
class _Pack:
    name: str
    resident: bool = False
    bytes: int | None = None
    """the most that it takes in memory, known when it was loaded"""
    pinned: bool = False
    in_use: int = 0
    used_at: int = 0
    hits: int = 0
    loads: int = 0
    load_seconds: float | None = None
    evictions: int = 0
    proof: Outcome | None = None
    error: str | None = None
    load: asyncio.Task[None] | None = None
    waiting: int = 0
    """requests that wait for its load"""
    leaving: bool = False
    """no new use is let in: it is being unloaded"""
    changing: bool = False
    """the engine adds it now, so its load cannot be given up"""


@dataclass(eq=False)
class _Room:
    """A load that waits for room."""

    pack: _Pack
    bytes: int
    ready: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PackMemory:
    """Holds packs of a weave in memory while they are used, and longer if they fit.

    - ``between_steps``: how weave and model are changed while the engine runs
    - ``budget``: most bytes of the packs in memory, without the base; None: all packs fit. Each pack counts with the
      bytes that it takes while steps of the engine use it (:meth:`PackedModel.pack_bytes`)

    A pack in use and a pinned pack never leave. Loads that find no room wait in their order.
    """

    def __init__(self, weave: Weave, between_steps: BetweenSteps, budget: int | None = None) -> None:
        self._weave, self._between_steps, self.budget = weave, between_steps, budget
        weave.packed_model.watch()
        self._packs = {name: _Pack(name) for name in weave.packs}
        for name in weave.loaded:
            pack = self._packs[name]
            pack.resident, pack.bytes = True, weave.packed_model.pack_bytes(name)
            pack.proof = weave.proofs.outcomes[name]
        self._reserved = sum(pack.bytes or 0 for pack in self._packs.values())
        self._queue: deque[_Room] = deque()
        self._clock = 0
        self._first_read, self._adding = asyncio.Lock(), asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> Collection[str]:
        """The names of all packs, in memory or not."""
        return self._packs.keys()

    @property
    def used_bytes(self) -> int:
        """The most bytes of the packs that are in memory, come into it or are leaving it. Never above the budget."""
        return self._reserved

    # -- use -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[None]:
        """Context in which a pack is in memory and cannot leave; it begins when the pack is there and proven.

        None stands for the plain base, which is always there. Raises :class:`UserError` for an unknown pack, one that
        cannot be loaded, and one that can never have room.
        """
        if name is None:
            yield
            return
        pack = self._known(name)
        await self._acquire(pack)
        try:
            yield
        finally:
            self._release(pack)

    async def _acquire(self, pack: _Pack) -> None:
        """Count one more use of a pack, when it is in memory."""
        if pack.resident and not pack.leaving:
            pack.hits += 1
        while not pack.resident or pack.leaving:
            if pack.load is None:
                pack.load = self._start(self._load(pack))
            pack.waiting += 1
            load = pack.load
            try:
                await asyncio.shield(load)
            except asyncio.CancelledError:
                # The load may have been given up just before this request came: then it is started again.
                if _cancelled_now() or not load.cancelled():
                    raise
            finally:
                pack.waiting -= 1
                if not (pack.waiting or pack.leaving or pack.changing or load.done()):
                    load.cancel()  # nobody waits for it any more
            # The pack may leave again before this request goes on; the loop then loads it again.
        pack.in_use += 1
        self._touch(pack)

    def _release(self, pack: _Pack) -> None:
        pack.in_use -= 1
        self._touch(pack)
        self._make_room()

    def _touch(self, pack: _Pack) -> None:
        self._clock += 1
        pack.used_at = self._clock

    def _known(self, name: str) -> _Pack:
        if name not in self._packs:
            raise UserError(f"there is no pack {shown_value(name)}; {nearest(name, self._packs)}")
        return self._packs[name]

    # -- loading -------------------------------------------------------------------------------------------------

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those who wait for the task got it; if nobody waits, the status says it

    async def _load(self, pack: _Pack) -> None:
        began = time.perf_counter()
        reserved = 0
        try:
            if pack.bytes is not None:  # it was loaded before, so its size is known
                await self._reserve(pack, pack.bytes)
                reserved = pack.bytes
                read = await self._read(pack)
            else:
                # One at a time, so that only one pack takes memory before it has room.
                async with self._first_read:
                    read = await self._read(pack)
                    await self._reserve(pack, read.nbytes)
                    reserved = read.nbytes
            base = None
            if self._weave.proofs.must_prove(read):
                # The two short passes of a proof have steps of the engine between them.
                base = await self._between_steps(lambda: self._weave.proofs.base_says(read))
            pack.changing = True
            await self._between_steps(lambda: self._weave.put(read, base))
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                pack.error = str(error) or type(error).__name__
            self._reserved -= reserved
            raise
        else:
            pack.resident, pack.bytes, pack.error = True, reserved, None
            pack.proof = self._weave.proofs.outcomes[pack.name]
            pack.loads += 1
            pack.load_seconds = time.perf_counter() - began
            self._touch(pack)
        finally:
            pack.load, pack.changing = None, False
            self._make_room()

    async def _read(self, pack: _Pack) -> ReadPack:
        """Read a pack in a thread. If packs may leave, a copy is kept that is read faster when they come back."""
        return await beside_steps(lambda: self._weave.shelf.read(pack.name, keep=self.budget is not None))

    async def _reserve(self, pack: _Pack, nbytes: int) -> None:
        """Wait until there is room for so many bytes, and take it. Raises :class:`UserError` if there never can be."""
        room = _Room(pack, nbytes)
        self._queue.append(room)
        self._make_room()
        try:
            await room.ready
        except asyncio.CancelledError:
            if room in self._queue:
                self._queue.remove(room)
            elif not room.ready.cancelled() and room.ready.exception() is None:
                self._reserved -= nbytes  # it was given in the moment in which the load was given up
            self._make_room()
            raise

    def _check_can_fit(self, pack: _Pack, nbytes: int) -> None:
        pinned = sum(one.bytes or 0 for one in self._packs.values() if one.pinned and one is not pack and one.resident)
        if self.budget is not None and nbytes + pinned > self.budget:
            raise UserError(
                f"the pack '{pack.name}' takes {human_bytes(nbytes)} in memory, and of the budget of "
                f"{human_bytes(self.budget)} for packs the pinned ones take {human_bytes(pinned)}: give a larger "
                f"budget, or unpin a pack"
            )

    def _make_room(self) -> None:
        """Give room to the loads that wait, in their order; idle packs begin to leave for the first that has none."""
        for room in [room for room in self._queue if room.ready.done()]:
            self._queue.remove(room)  # it was cancelled
        while self._queue:
            first = self._queue[0]
            try:
                self._check_can_fit(first.pack, first.bytes)
            except UserError as error:
                self._queue.popleft()
                first.ready.set_exception(error)
                continue
            if self.budget is None or self._reserved + first.bytes <= self.budget:
                self._queue.popleft()
                self._reserved += first.bytes
                first.ready.set_result(None)
                continue
            leaving = sum(pack.bytes or 0 for pack in self._packs.values() if pack.leaving)
            missing = self._reserved + first.bytes - leaving - self.budget
            for pack in sorted(self._idle(), key=lambda pack: pack.used_at):
                if missing <= 0:
                    break
                missing -= pack.bytes or 0
                pack.evictions += 1
                self._leave(pack)
            return

    def _idle(self) -> list[_Pack]:
        return [
            pack
            for pack in self._packs.values()
            if pack.resident and not (pack.pinned or pack.leaving or pack.in_use or pack.waiting)
        ]

    def _leave(self, pack: _Pack) -> asyncio.Task[None]:
        """Unload an idle pack. Whoever wants it meanwhile waits until it is gone, and loads it again."""
        pack.leaving = True
        task = self._start(self._unload(pack))
        pack.load = task
        return task

    async def _unload(self, pack: _Pack) -> None:
        try:
            await self._between_steps(lambda: self._weave.unload(pack.name))
            pack.resident = False
            self._reserved -= pack.bytes or 0
        finally:
            pack.leaving = False
            pack.load = None
            self._make_room()

    # -- what people ask for -------------------------------------------------------------------------------------

    async def pin(self, name: str) -> None:
        """Load a pack, and keep it in memory until it is unpinned. Raises :class:`UserError` as :meth:`use` does."""
        async with self.use(name):
            self._known(name).pinned = True

    def unpin(self, name: str) -> None:
        """Let a pack leave again. Raises :class:`UserError` for an unknown pack."""
        self._known(name).pinned = False
        self._make_room()

    async def add(self, folder: str | Path) -> str:
        """Make the pack of a folder or hub id known, and return its name. Raises :class:`UserError`."""
        async with self._adding:
            name = await beside_steps(lambda: self._weave.shelf.add(folder))
        self._packs[name] = _Pack(name)
        return name

    async def remove(self, name: str) -> None:
        """Unload a pack that :meth:`add` made known, and forget it; its files stay.

        Raises :class:`UserError` if requests use it or wait for it, if it is pinned, and for a pack of the weave.
        """
        pack = self._known(name)
        self._weave.shelf.check_added(name)
        if pack.pinned or pack.in_use or pack.waiting:
            why = "it is pinned: unpin it" if pack.pinned else "requests use it: try again when they have ended"
            raise UserError(f"the pack '{name}' cannot be removed now, because {why}")
        while pack.load is not None:
            with contextlib.suppress(UserError):
                await asyncio.shield(pack.load)
        if pack.in_use or pack.waiting or pack.pinned:
            raise UserError(f"the pack '{name}' cannot be removed now, because requests use it: try again later")
        if self._packs.get(name) is not pack:
            return  # another call removed it meanwhile
        if pack.resident:
            await asyncio.shield(self._leave(pack))
        self._weave.shelf.forget(name)
        del self._packs[name]

    def status(self) -> list[PackStatus]:
        """Return where every pack is, in the order of the weave."""
        return [
            PackStatus(
                name=pack.name,
                level=_level(pack),
                bytes=self._weave.packed_model.held_bytes(pack.name) if pack.resident else pack.bytes,
                pinned=pack.pinned,
                in_use=pack.in_use,
                hits=pack.hits,
                loads=pack.loads,
                load_seconds=pack.load_seconds,
                evictions=pack.evictions,
                proof=pack.proof,
                error=pack.error,
            )
            for pack in self._packs.values()
        ]


def _cancelled_now() -> bool:
    """Whether the running task is being cancelled itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _level(pack: _Pack) -> Level:
    if pack.resident and not pack.leaving:
        return "memory"
    if pack.load is not None and not pack.leaving:
        return "loading"
    return "failed" if pack.error is not None else "disk"
