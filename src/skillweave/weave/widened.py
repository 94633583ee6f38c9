"""Factors with a byte for each code, as the compiled functions read them, and which packs have them in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from skillweave.weave.coded_factors import Groups
from skillweave.weave.compiled import READ, PartArgument, compiled
from skillweave.weave.factors import Factors, fours, mapped

KEPT_STEPS = 100
"""What steps of continuous batching read stays until a pack was not used in so many steps. It is made again in a
fraction of the time of one step."""


@dataclass(frozen=True)
class Widened:
    """One pack's factors of a group, with codes of a byte each, in the order in which the compiled functions read."""

    B: int
    """the address of the B of all modules below each other, (rank, in)"""
    rank: int
    """of all modules together"""
    parts: dict[str, PartArgument]
    """by module"""
    unsmooth: int
    """the address of 1 / smooth, or 0"""
    kept: tuple[torch.Tensor | None, ...]
    """what the addresses point to"""


class _Group(NamedTuple):
    """What a :class:`Widening` knows about one group."""

    B: int
    """where it begins among the widened codes"""
    rank: int
    parts: dict[str, int]
    """module -> its row in the table of parts"""


class Widening:
    """Where the codes of one pack lie in its buffer, and where they will lie widened.

    That depends on shapes and widths alone, so it is found out once for a pack, and not for every batch. Groups with
    factors on another device than the CPU are left out.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups: dict[str, _Group] = {}
        self.nbytes = 0
        """of the widened codes"""
        blocks: list[tuple[int, ...]] = []
        parts: list[tuple[int, ...]] = []
        for group, factors in groups.items():
            if all(own.flat.device.type == "cpu" for own in factors.values()):
                self._groups[group] = self._group(factors, blocks, parts)
        self._blocks = torch.tensor(blocks, dtype=torch.int64)
        """(blocks, 9), as in kernels.cpp"""
        self._parts = torch.tensor(parts, dtype=torch.int64)
        """(parts, 6), as in kernels.cpp, with places in buffers instead of addresses"""

    def _group(
        self, factors: Mapping[str, Factors], blocks: list[tuple[int, ...]], parts: list[tuple[int, ...]]
    ) -> _Group:
        """Add the blocks and the parts of a group's modules, and return the group."""
        rank = sum(own.rank for own in factors.values())
        numbers = {module: len(parts) + number for number, module in enumerate(factors)}
        column = row = 0
        for own in factors.values():
            A_scale = (-1, 0) if own.A_dtype is None else (own.A_scale_at, READ[own.A_dtype])
            # The scale of B is what comes first.
            parts.append((column, own.rank, own.at, self.nbytes, *A_scale))
            at = 0
            for codes in own.codes:
                size = codes.bits, own.out, codes.rank
                blocks.append((codes.A_at, *size, 0, own.out, at, fours(own.rank), self.nbytes))
                at += fours(codes.rank)
            column += own.rank
            self.nbytes += own.widened_A_nbytes
        begin = self.nbytes
        for own in factors.values():
            for codes in own.codes:
                blocks.append((codes.B_at, codes.bits, codes.rank, own.inner, row, rank, 0, fours(own.inner), begin))
                row += codes.rank
            self.nbytes += own.widened_B_nbytes
        return _Group(begin, rank, numbers)

    def widened(
        self, groups: Groups, unsmooth: Mapping[str, torch.Tensor], buffer: Callable[[int], torch.Tensor]
    ) -> dict[str, Widened]:
        """Return the widened factors by group. ``groups`` is what this was made of, or a copy in another buffer.

        ``unsmooth``: 1 / smooth of the groups. ``buffer`` gives so many bytes, uint8, in which all codes will lie.
        """
        if not self._groups:
            return {}
        stored = next(own.flat for group in self._groups for own in groups[group].values())
        made = buffer(self.nbytes)
        compiled().sw_widen(stored.data_ptr(), self._blocks.data_ptr(), len(self._blocks), made.data_ptr())
        parts = self._parts.clone()
        parts[:, 2] += stored.data_ptr()
        parts[:, 3] += made.data_ptr()
        parts[:, 4] = torch.where(parts[:, 4] < 0, 0, parts[:, 4] + stored.data_ptr())
        arguments = (PartArgument * len(parts)).from_address(parts.data_ptr())
        found = {}
        for name, group in self._groups.items():
            smoothing = None if (given := unsmooth.get(name)) is None else given.float().contiguous()
            found[name] = Widened(
                made.data_ptr() + group.B,
                group.rank,
                {module: arguments[number] for module, number in group.parts.items()},
                0 if smoothing is None else smoothing.data_ptr(),
                (stored, made, parts, smoothing),
            )
        return found


class WidenedPacks:
    """The packs whose factors are widened now: those of a batch until it ends, those of steps for a while."""

    def __init__(self) -> None:
        self._widenings: dict[str, Widening] = {}
        self._made: dict[str, dict[str, Widened]] = {}
        self._steps = 0
        self._used_in: dict[str, int] = {}
        """pack that steps use -> the last of them"""

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def of(self, name: str, groups: Groups, unsmooth: Mapping[str, torch.Tensor]) -> dict[str, Widened]:
        """The widened factors of a pack by group; they are made if they are not there."""
        if name not in self._made:
            if name not in self._widenings:
                self._widenings[name] = Widening(groups)
            # One batch after another uses the same memory: what is new takes the system longer than the widening.
            buffer = mapped if name in self._used_in else functools.partial(torch.empty, dtype=torch.uint8)
            self._made[name] = self._widenings[name].widened(groups, unsmooth, buffer)
        return self._made[name]

    def begin_step(self, names: Sequence[str]) -> None:
        """Note the packs of a step, whose factors stay after it, and drop those of packs that steps use no more."""
        self._steps += 1
        self._used_in |= dict.fromkeys(names, self._steps)
        for name in [name for name, step in self._used_in.items() if self._steps - step >= KEPT_STEPS]:
            self.drop(name)

    def end_batch(self) -> None:
        """Drop the factors of packs that no step uses."""
        for name in self._made.keys() - self._used_in:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Give back what the widened factors of a pack take."""
        self._made.pop(name, None)
        self._used_in.pop(name, None)

    def forget(self, name: str) -> None:
        """Forget a pack that is not resident any more."""
        self.drop(name)
        self._widenings.pop(name, None)
