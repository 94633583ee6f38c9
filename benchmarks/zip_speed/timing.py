"""Seconds of a decoding step, or of a prompt, of every way to answer; the ways take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.zip_speed.models import CONTEXT, Served, Way
from skillweave.progress import bar

DECODE, PREFILL = "decode", "prompt"
STEPS = 4
"""Decoding steps in one timed turn."""
GOAL_PACKS = 8
TURNS = "in turn"
Clock = Callable[[], float]


@dataclass(frozen=True)
class Size:
    """What is timed: a decoding step, or a prompt of so many tokens, with ``rows_each`` rows for each pack."""

    stage: str
    packs: int
    rows_each: int
    prompt: int

    @property
    def rows(self) -> int:
        return self.packs * self.rows_each


def take_turns(served: Served, size: Size, repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every repeat of each way: of one decoding step, or of one prompt, of a batch of this size."""
    ways: dict[str, Iterator[float]] = {name: turns(way, size, clock) for name, way in served.ways.items()}
    if size.packs <= GOAL_PACKS:
        ways[TURNS] = one_after_another(served.specialists, size, clock)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    with bar(f"{size.stage}: {size.packs} packs, {size.rows_each} rows each", repeats + 1) as advance:
        for repeat in range(-1, repeats):
            at = repeat % len(names)
            for name in names[at:] + names[:at]:
                taken = next(ways[name])
                if repeat >= 0:  # the run before the first warms caches and kernels
                    seconds[name].append(taken)
            advance()
    return seconds


@torch.no_grad()
def turns(way: Way, size: Size, clock: Clock) -> Iterator[float]:
    """Seconds of one turn after another. The context is opened for the turn, because other ways use the same model."""
    one = Stage(way.model, size, size.rows, clock)
    while True:
        with way.around(size.packs, size.rows_each):
            if size.stage == DECODE:
                one.step()  # unpacks the factors of this batch, which in a real one the prompt does
            taken = one()
        yield taken


@torch.no_grad()
def one_after_another(models: Sequence[Any], size: Size, clock: Clock) -> Iterator[float]:
    """Seconds for the rows of each pack in a batch of its own, on a model of its own."""
    own = [Stage(model, size, size.rows_each, clock) for model in models]
    while True:
        yield sum(own[number % len(own)]() for number in range(size.packs))


class Stage:
    """A batch of random tokens that is timed again and again."""

    def __init__(self, model: Any, size: Size, rows: int, clock: Clock) -> None:
        source = torch.Generator().manual_seed(0)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self._model, self._clock = model, clock
        self._cache = None
        if size.stage == DECODE:
            self._run(torch.randint(vocabulary, (rows, CONTEXT), generator=source))
        self._ids = torch.randint(vocabulary, (rows, size.prompt if self._cache is None else 1), generator=source)
        self._decodes = size.stage == DECODE

    def _run(self, ids: torch.Tensor) -> None:
        self._cache = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).past_key_values

    def step(self) -> None:
        """Decode one token for each row, and forget it."""
        self._run(self._ids)
        self._cache.crop(-1)  # type: ignore[attr-defined]

    def __call__(self) -> float:
        """Seconds of one prompt, or of one decoding step on the average of :data:`STEPS`."""
        if not self._decodes:
            self._cache = None
        count = STEPS if self._decodes else 1
        began = self._clock()
        for _ in range(count):
            self._run(self._ids)
        taken = (self._clock() - began) / count
        if self._decodes:
            self._cache.crop(-STEPS)  # type: ignore[attr-defined]
        return taken


def read_bandwidth(clock: Clock) -> float:
    """Bytes a second at which a tensor that no cache can hold is summed: the best of several turns."""
    large = torch.ones(2**27)
    best = 0.0
    for _ in range(7):
        began = clock()
        large.sum()
        best = max(best, large.nbytes / (clock() - began))
    return best
