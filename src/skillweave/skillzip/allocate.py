"""Allocate ranks under a byte budget: the next bytes go where they remove the most error. Pure functions.

With orthonormal singular vectors, the squared (weighted) error of all matrices together is the sum of the squared
singular values that are left out. So ranks compete by gain per byte across all matrices [ours; the digest of SkillZip
names no rule]. Rounding the factors costs a fixed share of each gain at a given width in bits, so it does not change
the order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Matrix:
    """What the allocation needs to know about one matrix."""

    gains: torch.Tensor
    """(k,) squared singular values in descending order: how much of the squared error each rank removes"""
    rank_bytes: float
    """bytes of one rank"""
    fixed_bytes: int
    """bytes that the matrix takes at any rank above 0: row scales, names"""
    step: int = 1
    """ranks are multiples of this (two four-bit codes share a byte)"""

    def cost(self, rank: int) -> int:
        """Return the bytes at ``rank``."""
        return 0 if rank == 0 else self.fixed_bytes + round(self.rank_bytes * rank)


COVERED = 0.96
"""Matrices with this share of the energy get a rank, if the budget can hold them."""


def allocate_all(matrices: Sequence[Matrix], energies: Sequence[float], budget: int) -> list[int]:
    """Return the ranks of :func:`allocate`, where matrices with at least :data:`COVERED` of the energy get one.

    ``energies`` are the squared norms of the matrices. Allocating by gain alone may leave out a large matrix (an
    embedding) whose change is not of low rank. A pack without any of it would not be the fine-tune.
    """
    ranks = allocate(matrices, budget)
    total = sum(energies)
    missing = sum(energy for energy, rank in zip(energies, ranks, strict=True) if not rank)
    if missing <= (1 - COVERED) * total:
        return ranks
    return allocate(matrices, budget, main_ones(energies))


def main_ones(energies: Sequence[float]) -> list[int]:
    """Return the indices of the fewest matrices that have :data:`COVERED` of the energy together, largest first."""
    covered, largest, total = 0.0, [], sum(energies)
    for index in sorted(range(len(energies)), key=lambda index: -energies[index]):
        if covered >= COVERED * total:
            break
        largest.append(index)
        covered += energies[index]
    return largest


def allocate(matrices: Sequence[Matrix], budget: int, first: Sequence[int] = ()) -> list[int]:
    """Return the rank of each matrix (0: left out) with a total cost of at most ``budget`` bytes.

    The matrices whose indices are in ``first`` get the least rank before all others, as far as the budget goes.

    The allocation is greedy by gain per byte. The first ranks of a matrix must also pay for its fixed bytes, so they
    are taken together: as many as give the most gain per byte. If all ranks cost the same and there are no fixed bytes,
    the result is optimal. Otherwise its gain is below the optimum by less than that of one such step.
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
    """Push the best next step of a matrix on the heap: the rank with the most gain per byte, starting from ``now``."""
    ends = range(now + matrix.step, len(sums), matrix.step)
    best = max(
        # Once the fixed bytes are paid, gains only fall, so the next step is the best one.
        ends if now == 0 else ends[:1],
        key=lambda end: float(sums[end] - sums[now]) / (matrix.cost(end) - matrix.cost(now)),
        default=None,
    )
    if best is not None:
        slope = float(sums[best] - sums[now]) / (matrix.cost(best) - matrix.cost(now))
        if slope > 0:
            heapq.heappush(heap, (-slope, index, best))
