"""The processes of one run: one by default, several under ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from skillweave.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Which process this is and how many there are. Rank 0 writes; the folder of a run is seen by all of them."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device_type: str) -> Processes:
        """Join the group that ``torchrun`` made (gloo on CPU, nccl on CUDA), or be alone."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            # Rank 0 may write a large checkpoint or zip samples while the others wait.
            dist.init_process_group("gloo" if device_type == "cpu" else "nccl", timeout=timedelta(hours=2))
        return cls(dist.get_rank(), dist.get_world_size())

    def device(self, device: torch.device) -> torch.device:
        """Where this process computes: the device it was given, or its own GPU where there are several processes."""
        if self.world == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.world > 1:
            dist.barrier()

    def from_first(self, make: Callable[[], T]) -> T:
        """The value that rank 0 makes; all processes go on once it is made. A failure there is a failure everywhere."""
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
        """Every process's value, by rank, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share(self, batch_size: int) -> int:
        """Examples of a batch that fall to this process; one that does not divide evenly is a :class:`UserError`."""
        if batch_size % self.world:
            raise UserError(
                f"batch_size {batch_size} does not divide over {self.world} processes: use a multiple of {self.world}"
            )
        return batch_size // self.world
