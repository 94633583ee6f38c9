"""The factors of all resident packs for one group of modules that share their input (q, k, v; gate, up; ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from skillweave.errors import UserError
from skillweave.pack import LowRank
from skillweave.weave.linear import LARGEST_CODE, Part, Segment


@dataclass(frozen=True)
class Factors:
    """One pack's factors of one module, on the device. Four-bit codes are stored as int8: see :class:`GroupStack`."""

    B: torch.Tensor
    """int8 (rank, in)"""
    A: torch.Tensor
    """int8 (rank, out)"""
    B_scale: torch.Tensor
    """float32 (rank,)"""
    A_scale: torch.Tensor
    """float32 (out,), divided by 127^2"""

    @classmethod
    def of(cls, parts: LowRank, device: torch.device) -> Factors:
        """The factors in the shapes and dtypes of the products. On CUDA the rank is padded to a multiple of 8."""
        fill = -parts.B.shape[0] % 8 if device.type == "cuda" else 0
        return cls(
            B=torch.nn.functional.pad(parts.B, (0, 0, 0, fill)).to(device),
            A=torch.nn.functional.pad(parts.A.T, (0, 0, 0, fill)).contiguous().to(device),
            B_scale=torch.nn.functional.pad(parts.B_scale.float(), (0, fill)).to(device),
            A_scale=(parts.A_scale.float() / LARGEST_CODE**2).to(device),
        )

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.B, self.A, self.B_scale, self.A_scale))


class GroupStack:
    """The resident factors of one group, side by side in memory.

    All ``B`` are in one int8 tensor (sum of ranks, in), module by module and within a module pack by pack. The ``A`` of
    each module are in one int8 tensor (sum of the module's ranks, out). :meth:`segments` returns views of these
    tensors, so no factor is stored twice. Four-bit codes are stored as int8, because unpacking them at every step costs
    more than the product itself; three packs of SmolLM2-135M at 1/32 of the bf16 delta then take 50 MB, 19% of the
    base.
    """

    def __init__(self) -> None:
        self.modules: list[str] = []
        self._packs: dict[str, dict[str, Factors]] = {}
        self._unsmooth: dict[str, torch.Tensor | None] = {}

    @property
    def packs(self) -> list[str]:
        """The names of the packs that change a module of this group."""
        return list(self._packs)

    @property
    def factors(self) -> Mapping[str, Mapping[str, Factors]]:
        """pack -> module -> factors"""
        return self._packs

    @property
    def unsmooth(self) -> Mapping[str, torch.Tensor | None]:
        """pack -> 1 / smooth, float32 (in,), or None"""
        return self._unsmooth

    def check_fits(self, pack: str, group: str, factors: Mapping[str, Factors]) -> None:
        """Raise :class:`UserError` if the matrices of a pack have another input width than this group."""
        theirs, ours = next(iter(factors.values())).B.shape[1], self._B.shape[1]
        if theirs != ours:
            raise UserError(
                f"the pack '{pack}' has matrices of {theirs} inputs in the group '{group}', and the pack "
                f"'{next(iter(self._packs))}' has matrices of {ours} inputs in it: one of the two was not made for "
                f"this model. Zip it again, or load one of the two."
            )

    def add(self, pack: str, factors: Mapping[str, Factors], unsmooth: torch.Tensor | None) -> dict[str, Factors]:
        """Add one pack's factors, and return them as views of the shared tensors, by module.

        The returned dict is updated whenever the tensors are laid out again. ``unsmooth``: 1 / smooth, float32 (in,),
        or None.
        """
        self.modules += [module for module in factors if module not in self.modules]
        self._packs[pack] = dict(factors)
        self._unsmooth[pack] = unsmooth
        self._lay_out()
        return self._packs[pack]

    def remove(self, pack: str) -> None:
        """Remove one pack's factors and close the gap."""
        del self._packs[pack], self._unsmooth[pack]
        self.modules = [module for module in self.modules if any(module in factors for factors in self._packs.values())]
        self._lay_out()

    def _lay_out(self) -> None:
        """Copy all factors into one tensor for B and one for each module's A.

        Every pack's factors become views of them.
        """
        order = [(module, pack) for module in self.modules for pack in self._packs if module in self._packs[pack]]
        if not order:
            return  # the last pack was removed, and the owner drops this stack
        self._B = torch.cat([self._packs[pack][module].B for module, pack in order])
        self._A: dict[str, torch.Tensor] = {}
        self._columns: dict[str, slice] = {}
        at = 0
        for module in self.modules:
            owners = [pack for name, pack in order if name == module]
            self._A[module] = torch.cat([self._packs[pack][module].A for pack in owners])
            start, inner = at, 0
            for pack in owners:
                old = self._packs[pack][module]
                rank = old.B.shape[0]
                views = (self._B[at : at + rank], self._A[module][inner : inner + rank])
                self._packs[pack][module] = Factors(*views, old.B_scale, old.A_scale)
                at, inner = at + rank, inner + rank
            self._columns[module] = slice(start, at)

    def segments(self, rows: Sequence[str | None], *, stacked: bool) -> list[Segment]:
        """The factors for a batch whose rows use the named packs; a row whose pack is not in this group uses none.

        ``stacked``: one segment of all resident packs for all rows; else one segment for each pack in use.
        """
        used = [pack for pack in self._packs if pack in rows]
        if stacked and used:
            return [self._stacked(rows)]
        return [self._single(pack, rows) for pack in used]

    def _single(self, pack: str, rows: Sequence[str | None]) -> Segment:
        own_rows = [index for index, name in enumerate(rows) if name == pack]
        parts, blocks, at = {}, [], 0
        for module in self.modules:
            factors = self._packs[pack].get(module)
            if factors is not None:
                columns = slice(at, at + factors.B.shape[0])
                parts[module] = Part(columns, factors.B_scale, factors.A, factors.A_scale)
                blocks.append(factors.B.T)
                at = columns.stop
        only_pack = len(self._packs) == 1  # then the blocks are already one tensor
        index = None if len(own_rows) == len(rows) else torch.tensor(own_rows, device=self._B.device)
        return Segment(index, self._unsmooth[pack], (self._B.T,) if only_pack else tuple(blocks), parts)

    def _stacked(self, rows: Sequence[str | None]) -> Segment:
        unsmooth = None
        if any(self._unsmooth[pack] is not None for pack in self._packs if pack in rows):
            plain = torch.ones(self._B.shape[1], device=self._B.device)
            by_pack = {pack: plain if value is None else value for pack, value in self._unsmooth.items()}
            unsmooth = torch.stack([by_pack.get(name, plain) for name in rows])[:, None]  # type: ignore[arg-type]
        parts = {}
        for module, columns in self._columns.items():
            owners = {pack: factors[module] for pack, factors in self._packs.items() if module in factors}
            no_change = torch.zeros(self._A[module].shape[1], device=self._B.device)
            scales = {}
            for name in {*rows}:
                scales[name] = torch.cat(
                    [f.B_scale if pack == name else torch.zeros_like(f.B_scale) for pack, f in owners.items()]
                )
            B_scale = torch.stack([scales[name] for name in rows])[:, None]
            A_scale = torch.stack([owners[n].A_scale if n in owners else no_change for n in rows])[:, None]
            parts[module] = Part(columns, B_scale, self._A[module], A_scale)
        return Segment(None, unsmooth, (self._B.T,), parts)
