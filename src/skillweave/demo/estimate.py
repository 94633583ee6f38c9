"""Estimate how long the demo still takes on this machine: first from one matrix product, then from finished steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import torch

from skillweave.progress import console

SHAPE = (512, 576, 1536)
"""Rows, inputs and outputs of the timed product, which is one layer of SmolLM2 on a batch."""

REPEATS = 9


def product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The median time of one product of :data:`SHAPE` in ``dtype``, in seconds. Measuring takes about 0.1 s."""
    rows, inputs, outputs = SHAPE
    x, weight = (
        torch.ones(rows, inputs, dtype=dtype, device=device),
        torch.ones(outputs, inputs, dtype=dtype, device=device),
    )
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight).sum().item()  # item() waits for a GPU
        seconds.append(time.perf_counter() - start)
    return median(seconds)


@dataclass
class Estimate:
    """The time that is left of a build.

    ``reference`` has the seconds of each step on another machine, in the order of the steps; steps that it does not
    name count as 0. ``scale`` is the guess of how many seconds this machine takes for one of those.
    """

    reference: Mapping[str, float]
    scale: float
    finished: dict[str, float] = field(default_factory=dict)
    """Step -> the seconds that it took on this machine."""
    _running: tuple[str, float] | None = None

    def begin(self, step: str, now: float) -> float:
        """The seconds that are left, including ``step``, which begins at ``now``, when the step before it has ended."""
        if self._running is not None:
            last, since = self._running
            self.finished[last] = now - since
        self._running = (step, now)
        known = list(self.reference)
        left = known[known.index(step) :] if step in known else []
        return sum(self.reference[name] for name in left) * self._speed()

    def _speed(self) -> float:
        """Seconds here for one second of the reference: at first ``scale``, then as finished steps measure."""
        here = sum(seconds for step, seconds in self.finished.items() if step in self.reference)
        there = sum(self.reference[step] for step in self.finished if step in self.reference)
        share = there / sum(self.reference.values())
        weight = min(1.0, share / 0.1)  # after a tenth of the work, only the finished steps count
        return self.scale * (1 - weight) + (here / there if there else 0.0) * weight

    def show(self, step: str) -> None:
        """Print the time that is left before ``step`` begins."""
        minutes = self.begin(step, time.monotonic()) / 60
        if minutes:
            console.print(f"  about {max(1, round(minutes))} min left", style="dim")
