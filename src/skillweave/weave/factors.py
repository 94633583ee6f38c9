"""The integer factors of a pack in use as they lie in memory: all of them in one buffer.

A pack has some hundred matrices, each with codes and scales. A tensor for each of them would take memory for itself,
and would leave holes between those of other packs when it is freed. So all of a pack is laid into one buffer, and
tensors that show parts of it are made when they are needed. On the CPU the buffer is a mapping of its own, which the
system gets back whole when it is freed; malloc would keep freed memory that lies between other memory in use.

Ranks whose codes fit into four bits are packed, two codes in a byte.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn.functional import pad

from skillweave.pack import LowRank, pack_int4, unpack_int4
from skillweave.pack.integers import LARGEST
from skillweave.weave.linear import LARGEST_CODE

_JOINED = 4
"""The compiled functions read A in groups of so many ranks, so only whole groups of them can stand before others."""
_ALIGNED = 64
"""The factors of each matrix begin at a multiple of this many bytes."""
_NOWHERE = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class RankCodes:
    """Where some ranks of one matrix's factors lie in the pack's buffer; their codes have the same width."""

    bits: Literal[4, 8]
    rank: int
    """the number of ranks"""
    A_at: int
    """A: rows of int8 (out, rank), or of uint8 (out, ceil(rank / 2)) with two codes in a byte"""
    B_at: int
    """B: rows of int8 (rank, in), or of uint8 (rank, ceil(in / 2))"""


@dataclass(frozen=True, slots=True)
class Factors:
    """One pack's factors of one module, on the device.

    From ``at`` on, the buffer holds the scale of B, that of A, and the codes: A and then B of the ranks that need eight
    bits, A and then B of those that fit into four.
    """

    flat: torch.Tensor
    """the buffer of the pack, uint8 (bytes,)"""
    at: int
    inner: int
    """the number of inputs"""
    out: int
    """the number of outputs"""
    rank: int
    wide: int
    """the number of ranks that need eight bits"""
    A_dtype: torch.dtype | None
    """float16 or float32, of the scale of A; None: the scale is 1 for every output"""

    @classmethod
    def of(cls, parts: LowRank, device: torch.device) -> Factors:
        """The factors of a single matrix, in a buffer of their own."""
        placed, order = placed_at(0, parts)
        made = replace(placed, flat=mapped(placed.nbytes))
        made.scales.copy_(scale_bytes(placed, parts, order))
        made.fill(parts.A.T[order], parts.B[order])
        return replace(made, flat=made.flat.to(device))

    @property
    def B_scale(self) -> torch.Tensor:
        """float32 (rank,)"""
        return self._view(self.at, torch.float32, self.rank)

    @property
    def A_scale_at(self) -> int:
        """Where the scale of A begins in the buffer."""
        return self.at + 4 * self.rank

    @property
    def A_scale(self) -> torch.Tensor | None:
        """float16 or float32 (out,); None: 1 for every output"""
        return None if self.A_dtype is None else self._view(self.A_scale_at, self.A_dtype, self.out)

    @property
    def _codes_at(self) -> int:
        return self.A_scale_at + (0 if self.A_dtype is None else self.A_dtype.itemsize * self.out)

    @property
    def scale_nbytes(self) -> int:
        """The bytes of both scales, which come first."""
        return self._codes_at - self.at

    @property
    def scales(self) -> torch.Tensor:
        """uint8: the bytes of both scales"""
        return self.flat[self.at : self._codes_at]

    @property
    def codes(self) -> list[RankCodes]:
        """The ranks that need eight bits, and then those that fit into four."""
        made: list[RankCodes] = []
        at = self._codes_at
        narrow = self.rank - self.wide
        if self.wide:
            made.append(RankCodes(8, self.wide, at, at + self.out * self.wide))
            at += (self.out + self.inner) * self.wide
        if narrow or not self.wide:
            made.append(RankCodes(4, narrow, at, at + self.out * _halved(narrow)))
        return made

    @property
    def nbytes(self) -> int:
        """The bytes of the scales and the codes."""
        last = self.codes[-1]
        return last.B_at + last.rank * (self.inner if last.bits == 8 else _halved(self.inner)) - self.at

    @property
    def widened_A_nbytes(self) -> int:
        """The bytes of A with a byte for each code, in groups of four ranks, as the compiled functions read it."""
        return self.out * 4 * fours(self.rank)

    @property
    def widened_B_nbytes(self) -> int:
        """The bytes of B with a byte for each code, in groups of four inputs, as the compiled functions read it."""
        return self.rank * 4 * fours(self.inner)

    @property
    def widened_nbytes(self) -> int:
        """The bytes of A and B as the compiled functions read them."""
        return self.widened_A_nbytes + self.widened_B_nbytes

    def codes_of_A(self, codes: RankCodes) -> torch.Tensor:
        """The codes of A as they are stored."""
        width = codes.rank if codes.bits == 8 else _halved(codes.rank)
        return self._matrix(codes, codes.A_at, self.out, width)

    def codes_of_B(self, codes: RankCodes) -> torch.Tensor:
        """The codes of B as they are stored."""
        return self._matrix(codes, codes.B_at, codes.rank, self.inner if codes.bits == 8 else _halved(self.inner))

    def fill(self, columns_of_A: torch.Tensor, B: torch.Tensor) -> None:
        """Write the codes, int8 (rank, out) and (rank, in), whose ranks are in the order of :func:`placed_at`."""
        first = 0
        for codes in self.codes:
            ranks = slice(first, first + codes.rank)
            left, right = columns_of_A[ranks].T, B[ranks]
            self.codes_of_A(codes).copy_(left if codes.bits == 8 else pack_int4(left))
            self.codes_of_B(codes).copy_(right if codes.bits == 8 else pack_int4(right))
            first += codes.rank

    def unpacked(self) -> Unpacked:
        """The factors in the shapes and dtypes of the products. On CUDA the rank is padded to a multiple of 8."""
        lefts, rights = [], []
        for codes in self.codes:
            left, right = self.codes_of_A(codes), self.codes_of_B(codes)
            lefts.append(unpack_int4(left, codes.rank) if codes.bits == 4 else left)
            rights.append(unpack_int4(right, self.inner) if codes.bits == 4 else right)
        A, B = torch.cat(lefts, dim=1), torch.cat(rights)
        fill = -self.rank % 8 if B.is_cuda else 0
        scale = torch.ones(self.out, device=A.device) if self.A_scale is None else self.A_scale.float()
        return Unpacked(
            A=pad(A.T, (0, 0, 0, fill)).contiguous(),
            B=pad(B, (0, 0, 0, fill)),
            A_scale=scale / LARGEST_CODE**2,
            B_scale=pad(self.B_scale, (0, fill)),
        )

    def _matrix(self, codes: RankCodes, at: int, rows: int, width: int) -> torch.Tensor:
        stored = self.flat[at : at + rows * width].view(rows, width)
        return stored.view(torch.int8) if codes.bits == 8 else stored

    def _view(self, at: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        return self.flat[at : at + count * dtype.itemsize].view(dtype)


@dataclass(frozen=True)
class Unpacked:
    """One pack's factors of one module as the products of torch read them."""

    A: torch.Tensor
    """int8 (rank, out)"""
    B: torch.Tensor
    """int8 (rank, in)"""
    A_scale: torch.Tensor
    """float32 (out,), divided by 127^2"""
    B_scale: torch.Tensor
    """float32 (rank,)"""


def placed_at(at: int, parts: LowRank) -> tuple[Factors, torch.Tensor]:
    """The factors as they will lie from ``at`` on, without their buffer, and the order of their ranks, int64 (rank,).

    The ranks of large codes come first, which changes no product.
    """
    (out, rank), inner = parts.A.shape, parts.B.shape[1]
    largest = _largest(parts)
    wide = min(rank, -int((largest > LARGEST[4]).sum()) // _JOINED * -_JOINED)
    scale = _narrow(parts.A_scale)
    placed = Factors(_NOWHERE, at, inner, out, rank, wide, None if scale is None else scale.dtype)
    return placed, torch.argsort(largest, descending=True, stable=True)


def scale_bytes(placed: Factors, parts: LowRank, order: torch.Tensor) -> torch.Tensor:
    """The scale of B in the given order of ranks and that of A, as the bytes that come first, uint8."""
    scales = [parts.B_scale[order].float()]
    if placed.A_dtype is not None:
        scales.append(parts.A_scale.to(placed.A_dtype))
    return torch.cat([scale.contiguous().view(torch.uint8) for scale in scales])


def fours(count: int) -> int:
    """The number of groups of four codes: the compiled functions multiply four at a time."""
    return -(-count // _JOINED)


def aligned(end: int) -> int:
    """Where the factors of the next matrix begin."""
    return -(-end // _ALIGNED) * _ALIGNED


def mapped(size: int) -> torch.Tensor:
    """A buffer of so many zeros, uint8, which the system gets back whole when it is freed."""
    # The default flags share the pages with child processes, and then each page takes longer to get.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return torch.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), dtype=torch.uint8)


def _largest(parts: LowRank) -> torch.Tensor:
    """The largest code of each rank, int16 (rank,); 0 if it has none."""
    rank = parts.B.shape[0]
    A = parts.A.short().abs().amax(dim=0) if parts.A.numel() else torch.zeros(rank, dtype=torch.int16)
    B = parts.B.short().abs().amax(dim=1) if parts.B.numel() else torch.zeros(rank, dtype=torch.int16)
    return torch.maximum(A, B)


def _narrow(scale: torch.Tensor) -> torch.Tensor | None:
    """The scale in float16 if that is exact, else in float32; None if it is 1 everywhere."""
    if bool((scale == 1).all()):
        return None
    narrow = scale.half()
    return narrow if torch.equal(narrow.float(), scale.float()) else scale.float()


def _halved(count: int) -> int:
    """The bytes of so many codes of four bits."""
    return (count + 1) // 2
