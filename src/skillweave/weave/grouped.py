"""The tables that the GPU kernel reads: where the factors of each pack are, and which tokens use which pack. Pure.

A kernel works on *tiles*: up to a fixed number of tokens that all use the same pack. Tokens of one pack lie in several
rows of a batch, so the rows are put in the order of their packs first. A batch of any mix of packs is then one list of
tiles, and takes one launch for each product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from skillweave.weave.factors import Unpacked

HiddenOfAll = tuple[torch.Tensor, torch.Tensor]
"""The result of the first product: h int32 (tokens, widest), and max|u| float32 (tokens,). A token without a pack has
no values in it."""


@dataclass(frozen=True)
class ModuleFactors:
    """The second factors of one module, of all packs that change it."""

    A: torch.Tensor
    """int8 (sum of ranks, out)"""
    A_scale: torch.Tensor
    """float32 (packs, out), divided by 127^2"""
    places: torch.Tensor
    """int32 (packs, 3): the pack's rank in this module, its first column in h, and its first row in A"""


@dataclass(frozen=True)
class GroupedFactors:
    """The factors of all packs of a group, with tables that say which part belongs to which pack.

    In h, a pack's ranks for all its modules are side by side and begin at column 0, so h has ``widest`` columns.
    """

    numbers: Mapping[str, int]
    """the number of each pack, which is its row in the tables"""
    B: torch.Tensor
    """int8 (sum of ranks, in)"""
    ranks: torch.Tensor
    """int32 (packs,): the columns of h that a pack uses"""
    rows: torch.Tensor
    """int32 (packs, widest): the row of B that makes each column of h"""
    B_scale: torch.Tensor
    """float32 (packs, widest)"""
    unsmooth: torch.Tensor | None
    """1 / smooth, float32 (packs, in); None: no pack has a smoothing"""
    modules: Mapping[str, ModuleFactors]

    @property
    def widest(self) -> int:
        return self.rows.shape[1]


@dataclass(frozen=True)
class GroupedTokens:
    """The tokens of a batch in the order of their packs, cut into tiles of at most ``block`` tokens."""

    block: int
    width: int
    """the tokens of each row"""
    order: torch.Tensor
    """int32 (n,): the rows that use a pack, in the order of their packs"""
    tiles: torch.Tensor
    """int32 (tiles, 3): the number of the pack, the first token of the tile in this order, and the end of the pack"""


def grouped_factors(
    packs: Mapping[str, Mapping[str, Unpacked]], unsmooth: Mapping[str, torch.Tensor | None]
) -> GroupedFactors:
    """Return the tables for the factors of the packs (pack -> module -> factors). ``unsmooth`` is by pack."""
    own_rows: dict[str, list[int]] = {pack: [] for pack in packs}
    own_scales: dict[str, list[torch.Tensor]] = {pack: [] for pack in packs}
    modules, blocks, first = {}, [], 0
    for module in dict.fromkeys(module for own in packs.values() for module in own):
        owners = {pack: own[module] for pack, own in packs.items() if module in own}
        A = torch.cat([own.A for own in owners.values()])
        device = A.device
        places, inner = [], 0
        scales = torch.zeros(len(packs), A.shape[1], device=device)
        for number, pack in enumerate(packs):
            if pack not in owners:
                places.append((0, 0, 0))
                continue
            own = owners[pack]
            rank = own.B.shape[0]
            places.append((rank, len(own_rows[pack]), inner))
            own_rows[pack] += range(first, first + rank)
            own_scales[pack].append(own.B_scale)
            blocks.append(own.B)
            scales[number] = own.A_scale
            first, inner = first + rank, inner + rank
        modules[module] = ModuleFactors(A, scales, _table(places, device))
    B = torch.cat(blocks)
    device = B.device
    widest = max(len(rows) for rows in own_rows.values())
    padded = [[*rows, *[0] * (widest - len(rows))] for rows in own_rows.values()]
    B_scale = torch.zeros(len(packs), widest, device=device)
    for number, pack in enumerate(packs):
        B_scale[number, : len(own_rows[pack])] = torch.cat(own_scales[pack])
    return GroupedFactors(
        numbers={pack: number for number, pack in enumerate(packs)},
        B=B,
        ranks=_table([len(rows) for rows in own_rows.values()], device),
        rows=_table(padded, device),
        B_scale=B_scale,
        unsmooth=_unsmooth(packs, unsmooth, B),
        modules=modules,
    )


def grouped_tokens(
    names: Sequence[str | None], width: int, numbers: Mapping[str, int], block: int, device: torch.device
) -> GroupedTokens:
    """Return the tiles for a batch whose rows, of ``width`` tokens each, use the named packs.

    A row without a pack, or with a pack that has no number, is in no tile.
    """
    order: list[int] = []
    tiles: list[tuple[int, int, int]] = []
    for pack, number in numbers.items():
        own = [index for index, name in enumerate(names) if name == pack]
        first, end = len(order) * width, (len(order) + len(own)) * width
        order += own
        tiles += [(number, at, end) for at in range(first, end, block)]
    return GroupedTokens(block, width, _table(order, device), _table(tiles, device).view(-1, 3))


def _unsmooth(
    packs: Mapping[str, object], unsmooth: Mapping[str, torch.Tensor | None], B: torch.Tensor
) -> torch.Tensor | None:
    given = [unsmooth.get(pack) for pack in packs]
    if all(value is None for value in given):
        return None
    plain = torch.ones(B.shape[1], device=B.device)  # x * 1 is x, to the bit
    return torch.stack([plain if value is None else value for value in given])


def _table(values: Sequence[object], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
