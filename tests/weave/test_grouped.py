"""The tables of the GPU kernel, read as the kernel reads them, by a slow loop."""

from __future__ import annotations

import torch

from helpers.factors import random_factors
from skillweave.pack import LowRank, reference_forward
from skillweave.weave.factors import Factors
from skillweave.weave.grouped import GroupedFactors, GroupedTokens, grouped_factors, grouped_tokens
from skillweave.weave.stack import GroupStack

INNER, OUT = 12, {"q": 10, "k": 6}
RANKS = {"a": {"q": 5, "k": 3}, "b": {"k": 2}, "c": {"q": 4}}


def changes(x: torch.Tensor, tables: GroupedFactors, tokens: GroupedTokens, module: str) -> torch.Tensor:
    """What the packs add to the tokens x (N * width, in), one token after another."""
    own = tables.modules[module]
    total = torch.zeros(x.shape[0], own.A.shape[1])
    for pack, first, end in tokens.tiles.tolist():
        rank, column, row = own.places[pack].tolist()
        if not rank:
            continue
        of_h = slice(column, column + rank)
        parts = LowRank(
            A=own.A[row : row + rank].T,
            B=tables.B[tables.rows[pack, of_h].long()],
            A_scale=own.A_scale[pack] * 127**2,
            B_scale=tables.B_scale[pack, of_h],
            smooth=None if tables.unsmooth is None else 1 / tables.unsmooth[pack],
        )
        for at in range(first, min(first + tokens.block, end)):
            token = int(tokens.order[at // tokens.width]) * tokens.width + at % tokens.width
            total[token] += reference_forward(x[token], parts)
    return total


def test_each_token_meets_the_factors_of_its_own_pack_once() -> None:
    smooth = (torch.rand(INNER, generator=torch.Generator().manual_seed(1)) + 0.5).half()
    packs = {
        pack: {
            module: random_factors(number, OUT[module], INNER, rank, smooth=smooth if pack == "b" else None)
            for module, rank in own.items()
        }
        for number, (pack, own) in enumerate(RANKS.items())
    }
    stack = GroupStack()
    for pack, own in packs.items():
        made = {module: Factors.of(parts, torch.device("cpu")) for module, parts in own.items()}
        stack.add(pack, made, 1 / smooth.float() if pack == "b" else None)
    names, width = ["c", "a", None, "b", "a"], 3
    x = torch.randn(len(names) * width, INNER, generator=torch.Generator().manual_seed(2))
    tables = grouped_factors({pack: stack.unpacked(pack) for pack in packs}, stack.unsmooth)
    for block in (1, 4, 16):
        tokens = grouped_tokens(names, width, tables.numbers, block, torch.device("cpu"))
        for module, out in OUT.items():
            got = changes(x, tables, tokens, module).view(len(names), width, out)
            for row, name in enumerate(names):
                parts = packs[name].get(module) if name else None
                mine = x.view(len(names), width, INNER)[row]
                want = torch.zeros(width, out) if parts is None else reference_forward(mine, parts)
                torch.testing.assert_close(got[row], want, rtol=1e-4, atol=1e-4)


def test_rows_without_a_pack_are_in_no_tile() -> None:
    nothing = grouped_tokens([None, "x"], 4, {"a": 0}, 16, torch.device("cpu"))
    assert nothing.tiles.shape == (0, 3)
    some = grouped_tokens(["a", "x", "a"], 5, {"a": 0}, 8, torch.device("cpu"))
    assert some.order.tolist() == [0, 2]
    assert some.tiles.tolist() == [[0, 0, 10], [0, 8, 10]]
