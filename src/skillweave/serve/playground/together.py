"""Follow several streams at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def together(streams: Sequence[AsyncIterator[Item]]) -> AsyncGenerator[tuple[Item | None, ...], None]:
    """Yield the latest item of every stream whenever one has a new one; None for a stream that has none yet.

    It ends with the last stream. Leaving it, or an error of a stream, cancels those that still run.
    """
    latest: list[Item | None] = [None] * len(streams)
    changed = asyncio.Event()

    async def follow(at: int, stream: AsyncIterator[Item]) -> None:
        try:
            async for item in stream:
                latest[at] = item
                changed.set()
        finally:
            changed.set()

    tasks = [asyncio.create_task(follow(at, stream)) for at, stream in enumerate(streams)]
    try:
        while not all(task.done() for task in tasks):
            await changed.wait()
            changed.clear()
            yield tuple(latest)
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
