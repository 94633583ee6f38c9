"""The threads that OpenMP keeps for each thread that has computed with torch.

GNU OpenMP counts them all. If there are more than processors, its threads no longer wait actively for work. Each of the
hundreds of small products of a decoding step then begins with waking a thread: without that, they take 0.7 of the time
(``python -m benchmarks.decode_step``, two cores). So a thread that computes beside an engine gives its own back.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_HARD = 2
"""``omp_pause_hard``: the threads end. They are made again when the calling thread needs them."""


def free_worker_threads() -> None:
    """End the threads that OpenMP keeps for the calling thread. With another OpenMP than GNU's, nothing happens."""
    library = _gnu_openmp()
    if library is not None:
        library.omp_pause_resource_all(_HARD)


async def beside_steps(job: Callable[[], Result]) -> Result:
    """Run a function in a thread of its own while an engine computes, and return its result."""

    def work() -> Result:
        try:
            return job()
        finally:
            free_worker_threads()

    return await asyncio.to_thread(work)


@functools.cache
def _gnu_openmp() -> Any:
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        return library if library.omp_pause_resource_all else None
    except (OSError, AttributeError):  # not loaded; too old; not on this system
        return None
