"""Ranks under a byte budget: the next bytes go where they take away the most error. Pure functions.

With orthonormal singular vectors the squared (weighted) error of all matrices together is the sum of the squared
singular values left out, so ranks compete by gain per byte over all matrices [ours; the digest of SkillZip names no
rule]. The rounding of the factors takes a fixed share of each gain at a given width in bits and so changes no order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Matrix:
    """What the allocation knows of one matrix."""

    gains: torch.Tensor
    """(k,) squared singular values, falling: what each rank takes off the squared error"""
    rank_bytes: float
    """bytes of one rank"""
    fixed_bytes: int
    """bytes of having the matrix in the pack at all: row scales, names"""
    step: int = 1
    """ranks come in multiples of this (two four-bit codes share a byte)"""

    def cost(self, rank: int) -> int:
        """Bytes at ``rank``."""
        return 0 if rank == 0 else self.fixed_bytes + round(self.rank_bytes * rank)


HELD = 0.96
"""The share of the energy that lies in matrices with a rank at all, where the budget can hold that."""


def allocate_all(matrices: Sequence[Matrix], energies: Sequence[float], budget: int) -> list[int]:
    """:func:`allocate`, but so that matrices with at least :data:`HELD` of the energy get a rank, if they fit.

    Ranks by gain alone may leave out large matrices (an embedding) whose change is of no low rank; a pack without any
    of it would not be the fine-tune.
    """
    ranks = allocate(matrices, budget)
    total = sum(energies)
    missing = sum(energy for energy, rank in zip(energies, ranks, strict=True) if not rank)
    if missing <= (1 - HELD) * total:
        return ranks
    return allocate(matrices, budget, main_ones(energies))


def main_ones(energies: Sequence[float]) -> list[int]:
    """The fewest matrices that have :data:`HELD` of the energy, largest first."""
    held, first, total = 0.0, [], sum(energies)
    for index in sorted(range(len(energies)), key=lambda index: -energies[index]):
        if held >= HELD * total:
            break
        first.append(index)
        held += energies[index]
    return first


def allocate(matrices: Sequence[Matrix], budget: int, first: Sequence[int] = ()) -> list[int]:
    """The rank of each matrix (0: left out), of a total cost of at most ``budget``.

    The matrices ``first`` get the least rank before all others, as far as the budget goes.

    Greedy by gain per byte. The first ranks of a matrix must also earn its fixed bytes, so they are taken together, as
    many as make the best bargain. Where all ranks cost the same and nothing is fixed this is the optimum; else it is
    short of it by less than one such step.
    """
    ranks = [0] * len(matrices)
    left = budget
    heap: list[tuple[float, int, int]] = []
    sums = [torch.cat((torch.zeros(1, dtype=torch.float64), m.gains.double().cumsum(0))) for m in matrices]
    for index in first:
        matrix = matrices[index]
        if len(sums[index]) > matrix.step and float(matrix.gains[0]) > 0 and matrix.cost(matrix.step) <= left:
            ranks[index] = matrix.step
            left -= matrix.cost(matrix.step)
    for index, matrix in enumerate(matrices):
        _offer(heap, index, matrix, sums[index], ranks[index])
    while heap:
        _, index, rank = heapq.heappop(heap)
        matrix, now = matrices[index], ranks[index]
        while rank > now and matrix.cost(rank) - matrix.cost(now) > left:
            rank -= matrix.step
        if rank <= now:
            continue
        left -= matrix.cost(rank) - matrix.cost(now)
        ranks[index] = rank
        _offer(heap, index, matrix, sums[index], rank)
    return ranks


def _offer(heap: list, index: int, matrix: Matrix, sums: torch.Tensor, now: int) -> None:
    """Put the best next step of a matrix on the heap: the end rank with the most gain per byte from ``now``."""
    ends = range(now + matrix.step, len(sums), matrix.step)
    best = max(
        # From a rank that is paid for, gains only fall: the next step is the best one.
        ends if now == 0 else ends[:1],
        key=lambda end: float(sums[end] - sums[now]) / (matrix.cost(end) - matrix.cost(now)),
        default=None,
    )
    if best is not None:
        slope = float(sums[best] - sums[now]) / (matrix.cost(best) - matrix.cost(now))
        if slope > 0:
            heapq.heappush(heap, (-slope, index, best))
