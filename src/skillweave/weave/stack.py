"""The factors of all resident packs for one group of modules that share their input (q, k, v; gate, up; ...).

Ranks whose codes fit into four bits stay packed, two codes in a byte. A batch unpacks those of the packs that it uses
when it begins, and drops them when it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from skillweave.errors import UserError
from skillweave.pack import LowRank, pack_int4, unpack_int4
from skillweave.weave.linear import LARGEST_CODE, Part, Segment

_LARGEST_INT4 = 7
_JOINED = 4
"""The compiled functions read A in blocks of so many ranks, so only whole blocks of them can stand before others."""


@dataclass(frozen=True)
class Codes:
    """Some ranks of one pack's factors of one module, whose codes have the same width."""

    A: torch.Tensor
    """int8 (out, rank), or uint8 (out, ceil(rank / 2)) with two codes in a byte"""
    B: torch.Tensor
    """int8 (rank, in), or uint8 (rank, ceil(in / 2))"""
    bits: Literal[4, 8]

    @property
    def rank(self) -> int:
        """The number of ranks."""
        return self.B.shape[0]


@dataclass(frozen=True)
class Factors:
    """One pack's factors of one module, on the device, as they are kept in memory."""

    codes: tuple[Codes, ...]
    """the ranks that need eight bits, and then those that fit into four"""
    A_scale: torch.Tensor | None
    """float16 or float32 (out,); None: 1 for every output"""
    B_scale: torch.Tensor
    """float32 (rank,)"""
    inner: int
    """the number of inputs"""
    out: int
    """the number of outputs"""

    @classmethod
    def of(cls, parts: LowRank, device: torch.device) -> Factors:
        """The factors, with their ranks in the order of :attr:`codes`, which changes no product."""
        (out, rank), inner = parts.A.shape, parts.B.shape[1]
        largest = torch.maximum(_largest(parts.A, 0), _largest(parts.B, 1))
        order = torch.argsort(largest, descending=True, stable=True)
        wide = min(rank, -int((largest > _LARGEST_INT4).sum()) // _JOINED * -_JOINED)
        codes: list[Codes] = []
        A, B = parts.A[:, order], parts.B[order]
        if wide:
            codes.append(Codes(A[:, :wide].contiguous().to(device), B[:wide].contiguous().to(device), 8))
        if wide < rank or not rank:
            codes.append(Codes(pack_int4(A[:, wide:]).to(device), pack_int4(B[wide:]).to(device), 4))
        scale = _narrow(parts.A_scale)
        return cls(
            codes=tuple(codes),
            A_scale=scale if scale is None else scale.to(device),
            B_scale=parts.B_scale.float()[order].to(device),
            inner=inner,
            out=out,
        )

    @property
    def rank(self) -> int:
        return len(self.B_scale)

    @property
    def nbytes(self) -> int:
        scale = 0 if self.A_scale is None else self.A_scale.nbytes
        return sum(codes.A.nbytes + codes.B.nbytes for codes in self.codes) + self.B_scale.nbytes + scale

    def unpacked(self) -> Unpacked:
        """The factors in the shapes and dtypes of the products. On CUDA the rank is padded to a multiple of 8."""
        A = torch.cat([unpack_int4(one.A, one.rank) if one.bits == 4 else one.A for one in self.codes], dim=1)
        B = torch.cat([unpack_int4(one.B, self.inner) if one.bits == 4 else one.B for one in self.codes])
        fill = -self.rank % 8 if B.is_cuda else 0
        scale = torch.ones(self.out, device=A.device) if self.A_scale is None else self.A_scale.float()
        return Unpacked(
            A=pad(A.T, (0, 0, 0, fill)).contiguous(),
            B=pad(B, (0, 0, 0, fill)),
            A_scale=scale / LARGEST_CODE**2,
            B_scale=pad(self.B_scale, (0, fill)),
        )


def _largest(codes: torch.Tensor, dim: int) -> torch.Tensor:
    """The largest code of each rank; 0 if a rank has none."""
    return codes.short().abs().amax(dim=dim) if codes.numel() else torch.zeros(codes.shape[1 - dim], dtype=torch.int16)


def _narrow(scale: torch.Tensor | None) -> torch.Tensor | None:
    """The scale in float16 if that is exact, else in float32; None if it is 1 everywhere."""
    if scale is None or bool((scale == 1).all()):
        return None
    narrow = scale.half()
    return narrow if torch.equal(narrow.float(), scale.float()) else scale.float()


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


class GroupStack:
    """The resident factors of one group."""

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.factors: dict[str, dict[str, Factors]] = {}
        """pack -> module -> factors"""
        self.unsmooth: dict[str, torch.Tensor | None] = {}
        """pack -> 1 / smooth, float32 (in,), or None"""

    @property
    def packs(self) -> list[str]:
        """The names of the packs that change a module of this group."""
        return list(self.factors)

    def check_fits(self, pack: str, group: str, factors: Mapping[str, Factors]) -> None:
        """Raise :class:`UserError` if the matrices of a pack have another input width than this group."""
        first = next(iter(self.factors))
        theirs, ours = next(iter(factors.values())).inner, next(iter(self.factors[first].values())).inner
        if theirs != ours:
            raise UserError(
                f"the pack '{pack}' has matrices of {theirs} inputs in the group '{group}', and the pack "
                f"'{first}' has matrices of {ours} inputs in it: one of the two was not made for "
                f"this model. Zip it again, or load one of the two."
            )

    def add(self, pack: str, factors: Mapping[str, Factors], unsmooth: torch.Tensor | None) -> None:
        """Add one pack's factors, by module. ``unsmooth``: 1 / smooth, float32 (in,), or None."""
        self.modules += [module for module in factors if module not in self.modules]
        self.factors[pack] = dict(factors)
        self.unsmooth[pack] = unsmooth

    def remove(self, pack: str) -> None:
        """Remove one pack's factors."""
        del self.factors[pack], self.unsmooth[pack]
        self.modules = [module for module in self.modules if any(module in own for own in self.factors.values())]

    def used(self, rows: Sequence[str | None]) -> list[str]:
        """The packs of this group that the rows of a batch use."""
        return [pack for pack in self.factors if pack in rows]

    def unpacked(self, pack: str) -> dict[str, Unpacked]:
        """The factors of one pack by module, as the products of torch read them."""
        return {module: own.unpacked() for module, own in self.factors[pack].items()}


def segments(stack: GroupStack, rows: Sequence[str | None], *, stacked: bool) -> list[Segment]:
    """The unpacked factors for a batch whose rows use the named packs; a row whose pack is not in the group uses none.

    ``stacked``: one segment of all packs in use for all rows; else one segment for each pack in use.
    """
    factors = {pack: stack.unpacked(pack) for pack in stack.used(rows)}
    if stacked and factors:
        return [_stacked(stack, factors, rows)]
    return [_single(own, stack.unsmooth[pack], pack, rows) for pack, own in factors.items()]


def _single(
    factors: Mapping[str, Unpacked], unsmooth: torch.Tensor | None, pack: str, rows: Sequence[str | None]
) -> Segment:
    parts, at = {}, 0
    for module, own in factors.items():
        parts[module] = Part(slice(at, at + own.B.shape[0]), own.B_scale, own.A, own.A_scale)
        at += own.B.shape[0]
    B = torch.cat([own.B for own in factors.values()])
    own_rows = [index for index, name in enumerate(rows) if name == pack]
    index = None if len(own_rows) == len(rows) else torch.tensor(own_rows, device=B.device)
    return Segment(index, unsmooth, (B.T,), parts)


def _stacked(stack: GroupStack, factors: Mapping[str, Mapping[str, Unpacked]], rows: Sequence[str | None]) -> Segment:
    order = [(module, pack) for module in stack.modules for pack in factors if module in factors[pack]]
    B = torch.cat([factors[pack][module].B for module, pack in order])
    unsmooth = None
    if any(stack.unsmooth[pack] is not None for pack in factors):
        plain = torch.ones(B.shape[1], device=B.device)
        by_pack = {pack: plain if (own := stack.unsmooth[pack]) is None else own for pack in factors}
        unsmooth = torch.stack([plain if name is None else by_pack.get(name, plain) for name in rows])[:, None]
    parts, at = {}, 0
    for module in dict.fromkeys(module for module, _ in order):
        owners = {pack: own[module] for pack, own in factors.items() if module in own}
        A = torch.cat([own.A for own in owners.values()])
        no_change = torch.zeros(A.shape[1], device=B.device)
        scales = {name: torch.cat([own.B_scale * (pack == name) for pack, own in owners.items()]) for name in {*rows}}
        parts[module] = Part(
            slice(at, at + A.shape[0]),
            torch.stack([scales[name] for name in rows])[:, None],
            A,
            torch.stack([owners[name].A_scale if name in owners else no_change for name in rows])[:, None],
        )
        at += A.shape[0]
    return Segment(None, unsmooth, (B.T,), parts)
