"""One group of modules with the packs of a running batch, computed by the compiled functions.

The numbers are those of :mod:`skillweave.weave.linear`: the same codes, the same exact sums, the same two roundings.
Each pack is multiplied with its own rows only.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass

import torch

from skillweave.weave.compiled import KINDS, PartArgument, SegmentArgument, compiled
from skillweave.weave.stack import GroupStack, RowPacks
from skillweave.weave.widened import Widened


@dataclass(frozen=True)
class CompiledHidden:
    """What :meth:`CompiledGroup.into_rank` makes: the sums of the first product, and max|u| of each token.

    ``tokens``: of the input, and ``shape``: its rows, and the tokens of a row. ``shape``, ``sums`` and ``top`` are
    arguments of the compiled functions.
    """

    tokens: int
    shape: tuple[c_int64, c_int64]
    sums: c_void_p
    top: c_void_p
    kept: tuple[torch.Tensor, torch.Tensor]


class CompiledGroup:
    """The widened factors for a batch whose rows use the named packs; a row whose pack is not in the group uses none.

    With one name for all rows, the batch may have any number of rows. ``widened`` gives the factors of a pack. A step
    of decoding makes hundreds of calls, so what stays the same is prepared once.
    """

    def __init__(self, stack: GroupStack, names: RowPacks, widened: Callable[[str], Widened]) -> None:
        used = stack.used(names)
        self._rows = None if len(names.distinct) == 1 else len(names)
        self._kept: list[torch.Tensor | Widened] = []
        """what the arguments point to"""
        self._segments = (SegmentArgument * len(used))()
        self._count = c_int64(len(used))
        self._parts = {module: (PartArgument * len(used))() for module in stack.modules}
        self._inner = next((own.inner for pack in used for own in stack.factors[pack].values()), 0)
        self._ranks: list[tuple[int, int | None]] = []
        """for each pack: its rank in the group, and the number of its rows; None: all"""
        for at, pack in enumerate(used):
            own, index = widened(pack), names.index(pack)
            self._kept += [own] if index is None else [own, index]
            for module, part in own.parts.items():
                self._parts[module][at] = part
            count = None if index is None else index.shape[0]
            self._ranks.append((own.rank, count))
            address = 0 if index is None else index.data_ptr()
            self._segments[at] = SegmentArgument(own.B, own.rank, own.unsmooth, address, count or len(names))
        self._hidden: CompiledHidden | None = None
        """what the last call made, whose place the next one takes if it has as many tokens"""

    def into_rank(self, x: torch.Tensor) -> CompiledHidden:
        """The first product, for all modules of the group, of ``x`` (..., in), with rows before their tokens.

        It lies where the result of the call before lay, if that had as many tokens.
        """
        tokens = x.numel() // self._inner
        hidden = self._hidden
        if hidden is None or hidden.tokens != tokens:
            hidden = self._hidden = self._room(tokens)
        compiled().sw_into_rank(
            x.data_ptr(), KINDS[x.dtype], *hidden.shape, self._inner, self._segments, self._count, hidden.sums,
            hidden.top,
        )  # fmt: skip
        return hidden

    def _room(self, tokens: int) -> CompiledHidden:
        rows, per_row = (tokens, 1) if self._rows is None else (self._rows, tokens // self._rows)
        own = [((rows if count is None else count) * per_row, rank) for rank, count in self._ranks]
        sums = torch.empty(sum(count * rank for count, rank in own), dtype=torch.int32)
        top = torch.empty(sum(count for count, _ in own))
        shape = c_int64(rows), c_int64(per_row)
        return CompiledHidden(tokens, shape, c_void_p(sums.data_ptr()), c_void_p(top.data_ptr()), (sums, top))

    def add(self, module: str, hidden: CompiledHidden, output: torch.Tensor) -> None:
        """The second product: add the changes to the output (..., out) of one module, in place, rounding once."""
        compiled().sw_out_of_rank(
            output.data_ptr(), KINDS[output.dtype], *hidden.shape, output.shape[-1], self._segments,
            self._parts[module], self._count, hidden.sums, hidden.top,
        )  # fmt: skip
