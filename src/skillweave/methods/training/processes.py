"""The processes of a run: one by default, several under ``torchrun``."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from skillweave.errors import UserError

T = TypeVar("T")


def leave() -> None:
    """Leave the processes of ``torchrun``, if this process is one of them; who has joined them leaves at the exit.

    A thread of gloo that still holds a tensor of the last exchange needs Python's lock to free it. When Python ends
    before that, the thread aborts the process (SIGABRT), and torchrun calls the finished run a failed one; when the
    processes are left before that, both wait for each other. So the thread gets the lock first.
    """
    if dist.is_initialized():
        time.sleep(0.5)
        dist.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """Which process this is and how many there are. Rank 0 writes, and all processes see the folder of the run."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device_type: str) -> Processes:
        """Join the processes that ``torchrun`` started (gloo on CPU, nccl on CUDA), or return a single process."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            # The others wait while rank 0 writes a large checkpoint.
            dist.init_process_group("gloo" if device_type == "cpu" else "nccl", timeout=timedelta(hours=2))
            atexit.register(leave)
        return cls(dist.get_rank(), dist.get_world_size())

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: ``device``, or this process's own GPU if there are several processes."""
        if self.world == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process has called this."""
        if self.world > 1:
            dist.barrier()

    def from_first(self, make: Callable[[], T]) -> T:
        """Call ``make()`` in rank 0 only, and return its value in every process. If it fails, all processes raise."""
        if self.world == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                dist.broadcast_object_list([None, str(error)], src=0)
                raise
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise UserError(f"the first process failed: {box[1]}")
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share(self, batch_size: int) -> int:
        """How many examples of a batch this process gets. Raises :class:`UserError` if they do not divide evenly."""
        if batch_size % self.world:
            raise UserError(
                f"batch_size {batch_size} does not divide over {self.world} processes: use a multiple of {self.world}"
            )
        return batch_size // self.world
