"""The changes that packs add to the output of linear layers: integer products, for a batch of mixed packs. Pure.

The formula is SkillZip's X8A8B8 / X8A4B4 [digest], described in docs/explanation/skillzip.md; the slow reference is
:func:`skillweave.pack.reference_forward`. For a token x (in,) in a row that uses pack p::

    u = x / smooth                 q = round(127 u / max|u|)          int8
    h = q B^T                      int32, exact
    v = h B_scale                  c = round(127 v / max|v|)          int8
    y = c A^T                      int32, exact
    output += y A_scale max|u| max|v| / 127^2

The scale of u, one positive number for each token, is left out of v. It does not change the codes c; it only scales the
result, and is multiplied in at the end.

**Grouping.** A :class:`Segment` holds the factors for some rows of the batch. It is either one pack with its rows, or
*stacked*: the factors of several packs side by side along the rank, multiplied with all rows at once. In a stacked
segment each row's ``B_scale`` is 0 in the columns of the other packs. A column of zeros changes neither max|v| nor c,
so both ways give the same numbers (integer sums do not depend on their order).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

LARGEST_CODE = 127

# A tensor and not a number, because torch computes number / tensor in two operations and tensor / tensor in one.
_LARGEST = torch.tensor(float(LARGEST_CODE))
# Smaller than any activation that matters. 127 / 1e-30 still fits float32, so a token of zeros gives 0 and not NaN.
_SMALLEST = 1e-30
# For K up to 2^24 / 128^2, a sum of K products of int8 is an integer below 2^24, which float32 represents exactly.
_EXACT_IN_FLOAT32 = 1024


@dataclass(frozen=True)
class Part:
    """One module's part of a :class:`Segment`. n is the number of its rows; without n, all rows use one pack."""

    columns: slice
    """the columns of h that belong to this module"""
    B_scale: torch.Tensor
    """float32 (rank,) or (n, 1, rank); 0 in columns that belong to another pack than the row's"""
    A: torch.Tensor
    """int8 (rank, out): transposed, so that packs are one after another in memory"""
    A_scale: torch.Tensor
    """float32 (out,) or (n, 1, out), divided by 127^2"""


@dataclass(frozen=True)
class Segment:
    """The factors for the given rows of a batch, for all modules of a group that shares its input."""

    rows: torch.Tensor | None
    """int64 (n,), or None for all rows"""
    unsmooth: torch.Tensor | None
    """1 / smooth, float32 (in,) or (n, 1, in); None: no smoothing"""
    B: tuple[torch.Tensor, ...]
    """int8 blocks (in, rank_i), whose ranks are side by side in h"""
    parts: dict[str, Part]


@dataclass(frozen=True)
class Hidden:
    """The result of :func:`into_rank`: ``h`` int32 (n, T, rank) and ``top`` = max|u| float32 (n, T, 1)."""

    h: torch.Tensor
    top: torch.Tensor


def token_codes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 codes in [-127, 127] and max|values| of each token: float32 (..., n) -> int8 (..., n), float32 (..., 1).

    ``values`` is overwritten. A token of zeros gets the codes 0.
    """
    top = values.abs().amax(dim=-1, keepdim=True).clamp_min_(_SMALLEST)
    return values.mul_(_LARGEST / top).round_().char(), top


def into_rank(x: torch.Tensor, segment: Segment) -> Hidden:
    """The first product, for all modules of a group at once, of the segment's rows of ``x``, float (N, T, in)."""
    if segment.rows is not None:
        x = x.index_select(0, segment.rows)
    u = x.to(torch.float32, copy=True) if segment.unsmooth is None else x * segment.unsmooth
    codes, top = token_codes(u)
    flat = codes.reshape(-1, codes.shape[-1])
    blocks = [int_matmul(flat, block) for block in segment.B]
    h = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return Hidden(h.view(*codes.shape[:-1], -1), top)


def out_of_rank(hidden: Hidden, part: Part) -> torch.Tensor:
    """The second product, for one module: the change of its output, float32 (n, T, out)."""
    codes, top = token_codes(hidden.h[..., part.columns] * part.B_scale)
    y = int_matmul(codes.reshape(-1, codes.shape[-1]), part.A)
    return y.view(*codes.shape[:-1], -1) * (part.A_scale * (top * hidden.top))


def add_to_rows(output: torch.Tensor, rows: torch.Tensor | None, change: torch.Tensor) -> torch.Tensor:
    """Add a float32 change (n, T, out) to the given rows of ``output`` (N, T, out), in place, rounding only once."""
    if rows is None:
        return output.add_(change)
    return output.index_copy_(0, rows, (output.index_select(0, rows) + change).to(output.dtype))


def int_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The exact product of int8 (M, K) and int8 (K, N), as int32 (M, N).

    It uses ``torch._int_mm`` if the device computes it exactly, else float32. Measured on 2 cores of an EPYC with
    AVX512 VNNI, microseconds, integer against float32: 12x576x108 8 / 44, 12x108x576 6 / 22, 12x1536x108 14 / 52
    (decoding); 700x576x108 136 / 516, 700x108x576 107 / 449 (a prompt). So the integer product is the faster one for
    every shape.
    """
    if a.numel() == 0 or b.numel() == 0:
        return torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32, device=a.device)
    if not _int_mm_is_exact(a.device):
        return float_matmul(a, b)
    a, b = _row_major(a), _row_major(b)
    return _padded_int_mm(a, b) if a.is_cuda else torch._int_mm(a, b)


def _row_major(matrix: torch.Tensor) -> torch.Tensor:
    """The same matrix; a single row gets the strides of a row.

    The transpose of a column has the strides (1, 1) and counts as contiguous. On the CPU, ``torch._int_mm`` takes such
    a matrix for a transposed one, and gives wrong numbers without an error.
    """
    rows, columns = matrix.shape
    return matrix.as_strided((rows, columns), (columns, 1)) if rows == 1 and matrix.stride(1) == 1 else matrix


def float_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """:func:`int_matmul` with float32 products, in pieces of K that are short enough for every sum to be exact.

    TF32 is exact too: int8 fits into its 10 bits of mantissa, and sums are computed in float32.
    """
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32, device=a.device)
    for at in range(0, a.shape[1], _EXACT_IN_FLOAT32):
        piece = slice(at, at + _EXACT_IN_FLOAT32)
        total += (a[:, piece].float() @ b[piece].float()).int()
    return total


def _padded_int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``torch._int_mm`` on CUDA, which requires M > 16 and multiples of 8 for K and N."""
    rows, inner, columns = a.shape[0], a.shape[1], b.shape[1]
    more_rows, more_inner, more_columns = max(0, 17 - rows), -inner % 8, -columns % 8
    if more_rows or more_inner:
        a = pad(a, (0, more_inner, 0, more_rows))
    if more_inner or more_columns:
        b = pad(b, (0, more_columns, 0, more_inner))
    out = torch._int_mm(a, b)
    return out[:rows, :columns] if more_rows or more_columns else out


@functools.cache
def _int_mm_is_exact(device: torch.device) -> bool:
    """Whether ``torch._int_mm`` works on this device and is exact.

    On x86 without VNNI instructions it adds pairs of products in 16 bits, which overflows for the largest codes.
    Therefore the largest codes are tried.
    """
    signs = torch.tensor([1, 1, -1, -1], dtype=torch.int8).repeat(32)
    a = torch.stack([torch.full((128,), LARGEST_CODE, dtype=torch.int8), signs * LARGEST_CODE]).repeat(16, 1)
    expected = float_matmul(a, a.T)
    try:
        actual = _padded_int_mm(a.to(device), a.to(device).T)
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(actual.cpu(), expected)
