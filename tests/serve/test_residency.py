"""The pack memory on a weave that only counts, in a random schedule, and on real packs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skillweave.errors import UserError
from skillweave.serve.residency import PackMemory


class CountingWeave:
    """Packs of given sizes, and what is loaded; reading takes a moment in a thread."""

    def __init__(self, sizes: dict[str, int], bad: set[str] = frozenset()) -> None:
        self.sizes, self.bad = dict(sizes), set(bad)
        self.loaded: list[str] = []
        self.added: set[str] = set()
        self.reads: list[str] = []
        self.jobs: list[str] = []
        self.proven: dict[str, str | None] = {}
        self.packed_model = SimpleNamespace(watch=lambda: None, held_bytes=self.sizes.get)
        self.proofs = SimpleNamespace(must_prove=self.must_prove, base_says=self.base_says, outcomes=self.proven)
        self.shelf = SimpleNamespace(read=self.read, add=self.add, check_added=self.check_added, forget=self.forget)

    @property
    def packs(self) -> list[str]:
        return list(self.sizes)

    def read(self, name: str, *, keep: bool) -> Any:
        self.reads.append(name)
        if name in self.bad:
            raise UserError(f"{name} is damaged")
        return SimpleNamespace(name=name, nbytes=self.sizes[name])

    def must_prove(self, read: Any) -> bool:
        return read.name not in self.proven

    def base_says(self, read: Any) -> list[float]:
        self.jobs.append(f"base {read.name}")
        return [len(read.name)]

    def put(self, read: Any, base: list[float] | None) -> None:
        assert read.name not in self.loaded
        assert base == (None if read.name in self.proven else [len(read.name)])
        self.jobs.append(f"put {read.name}")
        self.proven[read.name] = "proven"
        self.loaded.append(read.name)

    def unload(self, name: str) -> None:
        self.loaded.remove(name)

    def add(self, folder: str | Path) -> str:
        name = Path(folder).name
        self.sizes[name] = 10
        self.added.add(name)
        return name

    def check_added(self, name: str) -> None:
        if name not in self.added:
            raise UserError(f"{name} belongs to the weave")

    def forget(self, name: str) -> None:
        assert name not in self.loaded
        del self.sizes[name]
        self.added.remove(name)


async def between(function):
    await asyncio.sleep(0)
    return function()


def memory(sizes: dict[str, int], budget: int | None, bad: set[str] = frozenset()) -> tuple[CountingWeave, PackMemory]:
    weave = CountingWeave(sizes, bad)
    return weave, PackMemory(weave, between, budget)


def status(packs: PackMemory, name: str):
    return next(one for one in packs.status() if one.name == name)


def run(coroutine) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0.002)


def test_the_pack_that_was_not_used_for_longest_leaves_and_hits_are_counted() -> None:
    async def main() -> None:
        weave, packs = memory({"a": 10, "b": 10, "c": 10}, 20)
        for name in ("a", "b", "a", "c"):
            async with packs.use(name):
                assert name in weave.loaded
        assert sorted(weave.loaded) == ["a", "c"]
        assert (status(packs, "a").hits, status(packs, "a").loads) == (1, 1)
        assert (status(packs, "b").level, status(packs, "b").evictions) == ("disk", 1)
        assert packs.used_bytes == 20
        async with packs.use(None):
            pass

    run(main())


def test_packs_in_use_and_pinned_ones_stay_and_waiters_wait_in_their_order() -> None:
    async def main() -> None:
        weave, packs = memory({"a": 10, "b": 10, "c": 10, "d": 10}, 20)
        await packs.pin("a")
        order = []

        async def wait(name: str) -> None:
            async with packs.use(name):
                order.append(name)

        async with packs.use("b"):
            first = asyncio.create_task(wait("c"))
            await settled()
            second = asyncio.create_task(wait("d"))
            await settled()
            assert (order, sorted(weave.loaded)) == ([], ["a", "b"])
            await asyncio.wait_for(wait("a"), 1)  # a pack in memory is not blocked
            assert status(packs, "c").level == "loading"
        await asyncio.gather(first, second)
        assert order == ["a", "c", "d"]
        assert "a" in weave.loaded
        packs.unpin("a")
        async with packs.use("b"), packs.use("c"):
            assert "a" not in weave.loaded

    run(main())


def test_the_base_is_asked_in_a_job_of_its_own_and_once() -> None:
    async def main() -> None:
        weave, packs = memory({"a": 10, "b": 10}, 10)
        assert status(packs, "a").proof is None
        for name in ("a", "b", "a"):
            async with packs.use(name):
                pass
        assert weave.jobs == ["base a", "put a", "base b", "put b", "put a"]
        assert status(packs, "a").proof == "proven"

    run(main())


def test_two_requests_share_one_load_and_a_cancelled_one_leaves_no_trace() -> None:
    async def main() -> None:
        weave, packs = memory({"a": 10, "b": 10}, 10)

        async def wait(name: str) -> None:
            async with packs.use(name):
                await asyncio.sleep(0)

        await asyncio.gather(wait("a"), wait("a"), wait("a"))
        assert weave.reads == ["a"]
        async with packs.use("a"):
            task = asyncio.create_task(wait("b"))
            await settled()
            task.cancel()
            await settled()
            assert status(packs, "b").level == "disk"
            # Given up and wanted again in the same moment: the request that came later is served.
            task, later = asyncio.create_task(wait("b")), None
            await settled()
            task.cancel()
            later = asyncio.create_task(wait("b"))
        await later
        assert weave.loaded == ["b"]
        assert packs.used_bytes == 10

    run(main())


def test_a_damaged_pack_fails_its_waiters_alone_and_is_tried_again() -> None:
    async def main() -> None:
        weave, packs = memory({"a": 10, "b": 10}, 10, {"b"})

        async def wait(name: str) -> str:
            async with packs.use(name):
                return name

        results = await asyncio.gather(wait("b"), wait("a"), wait("b"), return_exceptions=True)
        assert [isinstance(one, UserError) for one in results] == [True, False, True]
        assert (status(packs, "b").level, status(packs, "b").error) == ("failed", "b is damaged")
        weave.bad.clear()
        assert await wait("b") == "b"
        assert (status(packs, "b").level, status(packs, "b").error) == ("memory", None)

    run(main())


def test_a_pack_that_can_never_have_room_is_refused_at_once() -> None:
    async def main() -> None:
        _, packs = memory({"a": 10, "b": 15, "huge": 30}, 20)
        with pytest.raises(UserError, match="'huge' takes"):
            async with packs.use("huge"):
                pass
        await packs.pin("a")
        with pytest.raises(UserError, match="pinned ones take"):
            async with packs.use("b"):
                pass
        with pytest.raises(UserError, match="there is no pack 'zip'"):
            async with packs.use("zip"):
                pass
        assert packs.used_bytes == 10

    run(main())


def test_packs_are_added_and_removed() -> None:
    async def main() -> None:
        weave, packs = memory({"a": 10}, 20)
        assert await packs.add("somewhere/new") == "new"
        async with packs.use("new"):
            with pytest.raises(UserError, match="requests use it"):
                await packs.remove("new")
        await packs.remove("new")
        assert weave.packs == ["a"]
        assert packs.used_bytes == 0
        with pytest.raises(UserError, match="belongs to the weave"):
            await packs.remove("a")

    run(main())


@pytest.mark.parametrize("seed", range(5))
def test_a_random_schedule_never_exceeds_the_budget_and_ends(seed: int) -> None:
    """500 operations: the budget holds, no used pack leaves, everyone gets its own pack, and nobody waits for ever."""
    draw = random.Random(seed)
    sizes = {f"p{index}": draw.randint(5, 30) for index in range(12)}

    async def main() -> None:
        weave, packs = memory(sizes, 60, {"p0"})
        served = failed = 0

        def check() -> None:
            assert sum(sizes[name] for name in weave.loaded) <= packs.used_bytes <= 60

        async def request(name: str) -> None:
            nonlocal served, failed
            try:
                async with packs.use(name):
                    for _ in range(draw.randint(0, 4)):
                        assert name in weave.loaded
                        check()
                        await asyncio.sleep(draw.choice((0, 0.0005)))
                served += 1
            except UserError:
                failed += 1

        tasks = []
        for _ in range(500):
            what = draw.random()
            if what < 0.8:
                tasks.append(asyncio.create_task(request(draw.choice(list(sizes)))))
            elif what < 0.95 and tasks:
                draw.choice(tasks).cancel()
            elif status(packs, "p1").pinned:
                packs.unpin("p1")
            else:
                tasks.append(asyncio.create_task(packs.pin("p1")))
            check()
            if draw.random() < 0.5:
                await asyncio.sleep(draw.choice((0, 0.001)))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not [task.exception() for task in tasks if not task.cancelled() and task.exception()]
        await settled()
        check()
        assert served > 200
        assert failed > 0
        assert all(one.in_use == 0 and one.level != "loading" for one in packs.status())
        assert packs.used_bytes == sum(sizes[name] for name in weave.loaded)

    run(main())
