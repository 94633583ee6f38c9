"""The threads that OpenMP keeps for a thread end when it gives them back."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from skillweave.engine import worker_threads
from skillweave.engine.worker_threads import beside_steps, free_worker_threads

pytestmark = pytest.mark.skipif(
    worker_threads._gnu_openmp() is None or (os.cpu_count() or 1) < 2, reason="needs GNU OpenMP and two processors"
)


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def computed() -> torch.Tensor:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    return torch.randn(2000, 200).exp().sum(dim=1)


def test_they_end_and_come_back_when_they_are_needed(two_threads) -> None:
    first = computed()
    kept = threads()
    free_worker_threads()
    freed = threads()
    assert freed < kept
    assert torch.equal(computed(), first)
    assert threads() > freed


def test_a_job_beside_the_steps_leaves_none(two_threads) -> None:
    async def work() -> tuple[int, int]:
        # One thread, because a pool starts another one if the first has not yet said that it is idle.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await beside_steps(lambda: None)
        free_worker_threads()
        before = threads()
        await beside_steps(computed)
        return before, threads()

    before, after = asyncio.run(work())
    assert after <= before


def test_an_error_of_the_job_is_raised() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(beside_steps(fails))
