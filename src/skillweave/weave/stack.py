"""The factors of a batch's packs for one group of modules that share their input (q, k, v; gate, up; ...).

Before its first product, the batch widens their codes to int8, and drops these when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from skillweave.weave.factors import Factors, Unpacked
from skillweave.weave.linear import Part, Segment


class RowPacks:
    """The pack of each row of a batch; None is the plain base. Which rows a pack has is looked up once."""

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = list(names)
        self._rows: dict[str | None, list[int]] = {}
        for index, name in enumerate(self.names):
            self._rows.setdefault(name, []).append(index)
        self._indices: dict[str | None, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str | None]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    @property
    def distinct(self) -> list[str | None]:
        """Each pack once, in the order of their first rows."""
        return list(self._rows)

    def index(self, pack: str | None) -> torch.Tensor | None:
        """The rows of a pack as int64 (n,) on the CPU, or None if they are all rows of the batch."""
        rows = self._rows.get(pack, [])
        if len(rows) == len(self.names):
            return None
        if pack not in self._indices:
            self._indices[pack] = torch.tensor(rows, dtype=torch.int64)
        return self._indices[pack]


class GroupStack:
    """The laid-out factors of one group."""

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.factors: dict[str, Mapping[str, Factors]] = {}
        """pack -> module -> factors"""
        self.unsmooth: dict[str, torch.Tensor | None] = {}
        """pack -> 1 / smooth, float32 (in,), or None"""

    @property
    def packs(self) -> list[str]:
        """The names of the packs that change a module of this group."""
        return list(self.factors)

    def add(self, pack: str, factors: Mapping[str, Factors], unsmooth: torch.Tensor | None) -> None:
        """Add one pack's factors, by module. ``unsmooth``: 1 / smooth, float32 (in,), or None."""
        self.modules += [module for module in factors if module not in self.modules]
        self.factors[pack] = factors
        self.unsmooth[pack] = unsmooth

    def used(self, rows: RowPacks) -> list[str]:
        """The packs of this group that the rows of a batch use."""
        return [pack for pack in self.factors if pack in rows]

    def unpacked(self, pack: str) -> dict[str, Unpacked]:
        """The factors of one pack by module, as the products of torch read them."""
        return {module: own.unpacked() for module, own in self.factors[pack].items()}


def segments(stack: GroupStack, rows: RowPacks, *, stacked: bool) -> list[Segment]:
    """The unpacked factors for a batch whose rows use the named packs; a row whose pack is not in the group uses none.

    ``stacked``: one segment of all packs in use for all rows; else one segment for each pack in use.
    """
    factors = {pack: stack.unpacked(pack) for pack in stack.used(rows)}
    if stacked and factors:
        return [_stacked(stack, factors, rows)]
    return [_single(own, stack.unsmooth[pack], pack, rows) for pack, own in factors.items()]


def _single(factors: Mapping[str, Unpacked], unsmooth: torch.Tensor | None, pack: str, rows: RowPacks) -> Segment:
    parts, at = {}, 0
    for module, own in factors.items():
        parts[module] = Part(slice(at, at + own.B.shape[0]), own.B_scale, own.A, own.A_scale)
        at += own.B.shape[0]
    B = torch.cat([own.B for own in factors.values()])
    own_rows = rows.index(pack)
    index = None if own_rows is None else own_rows.to(B.device)
    return Segment(index, unsmooth, (B.T,), parts)


def _stacked(stack: GroupStack, factors: Mapping[str, Mapping[str, Unpacked]], rows: RowPacks) -> Segment:
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
        scales = {
            name: torch.cat([own.B_scale * (pack == name) for pack, own in owners.items()]) for name in rows.distinct
        }
        parts[module] = Part(
            slice(at, at + A.shape[0]),
            torch.stack([scales[name] for name in rows])[:, None],
            A,
            torch.stack([owners[name].A_scale if name in owners else no_change for name in rows])[:, None],
        )
        at += A.shape[0]
    return Segment(None, unsmooth, (B.T,), parts)
