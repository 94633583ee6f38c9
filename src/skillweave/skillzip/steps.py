"""Choose how finely each direction of each matrix is rounded when the codes are entropy coded. Pure functions.

A direction i of a matrix R is s_i u_i v_i^T, and its factors are sqrt(s_i) u_i (out numbers) and sqrt(s_i) v_i (in).
Rounding a number of a factor with the step d adds s_i d^2 / 12 to the squared error of the matrix, because the other
factor has the squared norm s_i. With entropy coding, a step of half the size costs one bit a number, whatever the
numbers are. So at the least error for the bytes all numbers of all matrices add the same error, d_i^2 = lambda / s_i,
and a direction is worth its bytes if its gain s_i^2 is above a share of (out + in) lambda ("reverse water-filling",
Cover and Thomas, Elements of Information Theory, section 10.3.3; for factors of matrices [ours]). The root mean square
of the codes is then sqrt(s_i^2 / (n lambda)): leading directions get more bits, and one number, lambda, decides about
ranks and widths of all matrices together.

Both constants were measured on a delta of SmolLM2-135M [ours]. The share of the squared error that is left at 1/128 and
1/512 of the bf16 bytes: 0.498 and 0.746 with directions kept above 0.2 (out + in) lambda, 0.518 and 0.764 above 0.1,
0.499 above 0.3, 0.505 above 0.45; 0.564 and 0.797 with 4 bits for all. Rounding up from 0.6 instead of 0.5, which
makes zeros more frequent, gains 2% (0.518 instead of 0.529).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from skillweave.pack.integers import LARGEST, LARGEST_SCALE

_KEPT_SHARE = 0.25
"""A direction is kept if its gain is above this share of (out + in) lambda."""
ROUND_UP = 0.6
"""A number rounds up to the next code, away from 0, from this part of a step on."""
_LARGEST_CODE = LARGEST[8]
_WIDEST = 32.0
"""The largest root mean square of codes: the largest of normally distributed codes are then near 127."""
_RANK_BYTES, _MATRIX_BYTES = 2.5, 12.0
"""Bytes of the scale and the class of a direction, and of a matrix on the card: rough, for a pack is weighed later."""
_HALVINGS = 60


@dataclass(frozen=True)
class Directions:
    """What the choice needs to know about one matrix (out, in)."""

    gains: torch.Tensor
    """(k,) squared singular values in descending order, float64"""
    shape: tuple[int, int]


@dataclass(frozen=True)
class Chosen:
    """The directions that a matrix keeps, and how large their codes are."""

    left: torch.Tensor
    """(rank,) root mean square of the codes of each column of A"""
    right: torch.Tensor
    """(rank,) the same for the rows of B"""

    @property
    def rank(self) -> int:
        """The number of directions."""
        return len(self.left)


def code_bits(size: torch.Tensor) -> torch.Tensor:
    """Return the entropy, in bits, of the codes of normally distributed numbers whose deviation is ``size`` steps."""
    grid = torch.linspace(-6, math.log2(2 * _WIDEST), 200, dtype=torch.float64)
    edges = torch.arange(_LARGEST_CODE + 1, dtype=torch.float64) + ROUND_UP
    beyond = torch.special.ndtr(-edges / grid.exp2()[:, None])  # the chance of a code above k, for k from 0 on
    single = torch.cat((beyond[:, :-1] - beyond[:, 1:], beyond[:, -1:]), dim=1)
    entropy = 2 * torch.special.entr(single).sum(dim=1) + torch.special.entr(1 - 2 * beyond[:, 0])
    at = ((size.double().clamp(min=2.0**-6).log2() - grid[0]) / (grid[1] - grid[0])).clamp(0, len(grid) - 1.001)
    low = at.long()
    table = entropy / math.log(2)
    return table[low] + (at - low) * (table[low + 1] - table[low])


def choose(
    matrices: Sequence[Directions], room: float, width: float | None = None, first: Collection[int] = ()
) -> list[Chosen]:
    """Return what each matrix keeps so that all together take about ``room`` bytes; rank 0 leaves a matrix out.

    ``width`` gives all codes the same root mean square; None fits it to each direction. The matrices in ``first`` keep
    one direction at least, even if the room is too small for them.
    """
    low, high = -120.0, 60.0  # log2(lambda)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = [_at(matrix, 2.0**middle, width, index in first) for index, matrix in enumerate(matrices)]
        low, high = (low, middle) if _bytes(matrices, found) <= room else (middle, high)
    return [_at(matrix, 2.0**high, width, index in first) for index, matrix in enumerate(matrices)]


def _at(matrix: Directions, level: float, width: float | None, forced: bool) -> Chosen:
    """Return what a matrix keeps at lambda = ``level``."""
    out, in_ = matrix.shape
    least = _KEPT_SHARE * (out + in_) * level
    rank = int((matrix.gains > least).sum())
    if forced and rank == 0 and len(matrix.gains) and float(matrix.gains[0]) > 0:
        rank = 1
    gains = matrix.gains[:rank].clamp(min=least)
    if width is not None:
        return Chosen(torch.full_like(gains, width), torch.full_like(gains, width))
    return Chosen(*((gains / (side * level)).sqrt().clamp(max=_WIDEST) for side in (out, in_)))


def _bytes(matrices: Sequence[Directions], chosen: Sequence[Chosen]) -> float:
    """Return about how many bytes the codes take."""
    lefts, rights = torch.cat([c.left for c in chosen]), torch.cat([c.right for c in chosen])
    ranks = torch.tensor([c.rank for c in chosen])
    outs, ins = (torch.tensor([m.shape[side] for m in matrices]).repeat_interleave(ranks) for side in (0, 1))
    bits = float((outs * code_bits(lefts)).sum() + (ins * code_bits(rights)).sum())
    return bits / 8 + _RANK_BYTES * len(lefts) + _MATRIX_BYTES * int((ranks > 0).sum())


def rounded_codes(numbers: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return ``numbers / step`` as whole floats in [-127, 127], where a number rounds up from :data:`ROUND_UP` on.

    A step of 0 gives 0. ``step`` is broadcast.
    """
    quotient = torch.where(step > 0, numbers / step, 0.0)
    return (quotient.sign() * (quotient.abs() + (1 - ROUND_UP)).floor()).clamp(-_LARGEST_CODE, _LARGEST_CODE)


def coded_factors(
    matrix: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor], chosen: Chosen, *, fit_left: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the codes of A, int8 (out, rank), those of B, int8 (rank, in), and the scale, bfloat16 (rank,).

    ``factors`` are A and B before the rounding. With ``fit_left``, A is fitted again to the rounded B, so that it makes
    up for a part of its error: the least squares solution of A B = ``matrix``. Raises ValueError for NaN, infinity and
    numbers that no scale can hold.
    """
    left, right = factors
    right_step = _step(right, chosen.right, dim=1)
    right_codes = rounded_codes(right, right_step[:, None])
    left_size = left.square().mean(dim=0).sqrt()
    if fit_left:
        read = right_codes * right_step[:, None]
        gram = (read @ read.T).double()
        gram += 1e-6 * gram.trace() / max(1, len(gram)) * torch.eye(len(gram), dtype=torch.float64)
        left = torch.linalg.lstsq(gram, (read @ matrix.T).double()).solution.T.to(left.dtype)
    left_step = torch.maximum(left_size / chosen.left.to(left.dtype), left.abs().amax(dim=0) / _LARGEST_CODE)
    if not bool(torch.isfinite(left_step).all() and torch.isfinite(right_step).all()):
        raise ValueError("a matrix with NaN or infinity cannot be quantised")
    # Rounded up, so that the largest number still has a code.
    scale = (left_step * right_step * (1 + 2.0**-8)).bfloat16()
    if bool((scale.float() > LARGEST_SCALE).any()):
        raise ValueError(f"{float((left_step * right_step).max()):.3g} is too large for a scale")
    left_step = torch.where(right_step > 0, scale.float() / right_step, 0.0)
    return rounded_codes(left, left_step).to(torch.int8), right_codes.to(torch.int8), scale


def _step(factor: torch.Tensor, size: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the step of each direction: its codes have the root mean square ``size``, and the largest is in range."""
    rms = factor.square().mean(dim=dim).sqrt()
    return torch.maximum(rms / size.to(factor.dtype), factor.abs().amax(dim=dim) / _LARGEST_CODE)
