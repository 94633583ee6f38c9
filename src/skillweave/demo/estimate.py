"""How long the demo will still take on this machine: first guessed from one product, then from the steps done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import torch

from skillweave.progress import console

SHAPE = (512, 576, 1536)
"""Rows, inputs and outputs of the product that is timed: a layer of SmolLM2 on a batch."""

REPEATS = 9


def product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The median time of one product of :data:`SHAPE` in ``dtype``, in seconds; measuring takes some 0.1 s."""
    rows, inputs, outputs = SHAPE
    x, weight = (
        torch.ones(rows, inputs, dtype=dtype, device=device),
        torch.ones(outputs, inputs, dtype=dtype, device=device),
    )
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight).sum().item()  # the item waits for a GPU
        seconds.append(time.perf_counter() - start)
    return median(seconds)


@dataclass
class Estimate:
    """What is left of a build whose steps took ``reference`` seconds each elsewhere. ``scale``: this machine's share.

    Steps that ``reference`` does not name count as nothing.
    """

    reference: Mapping[str, float]
    scale: float
    finished: dict[str, float] = field(default_factory=dict)
    """Seconds that the steps took which were done here."""
    _running: tuple[str, float] | None = None

    def begin(self, step: str, now: float) -> float:
        """The seconds that are left, ``step`` included, which begins at the time ``now``; what ran before has ended."""
        if self._running is not None:
            last, since = self._running
            self.finished[last] = now - since
        self._running = (step, now)
        known = list(self.reference)
        left = known[known.index(step) :] if step in known else []
        return sum(self.reference[name] for name in left) * self._speed()

    def _speed(self) -> float:
        """Seconds here for one second of the reference: the guess, until steps of some weight are done."""
        here = sum(seconds for step, seconds in self.finished.items() if step in self.reference)
        there = sum(self.reference[step] for step in self.finished if step in self.reference)
        share = there / sum(self.reference.values())
        weight = min(1.0, share / 0.1)  # a tenth of the work done says more than the guess
        return self.scale * (1 - weight) + (here / there if there else 0.0) * weight

    def show(self, step: str) -> None:
        """Print what is left before ``step``."""
        minutes = self.begin(step, time.monotonic()) / 60
        if minutes:
            console.print(f"  about {max(1, round(minutes))} min left", style="dim")
