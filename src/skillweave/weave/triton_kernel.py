"""The two products of :mod:`skillweave.weave.linear` as Triton kernels, for a batch of any mix of packs.

Each kernel quantises its tokens in registers and multiplies int8 codes into int32 sums (``tl.dot``, which runs on a
GPU's integer tensor cores). One launch makes the first product for all packs and all modules of a group, and one launch
for each module makes the second product and adds it to the output. Torch takes about ten launches for each pack.

The float steps are those of the torch path, in the same order and without fused multiply-adds, so both give the same
bits. The tests compare them in Triton's interpreter. (It cuts a float32 off where it must round it to bfloat16, so an
output in bfloat16 may differ there by one unit in the last place.) The kernels were not run on a GPU yet: the sizes of
the tiles are guesses.

Import this module only if a kernel will run: it imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from skillweave.weave.grouped import GroupedFactors, GroupedTokens, HiddenOfAll, ModuleFactors

_BLOCK_R = 32
"""Ranks of a tile. The integer product needs 32 for its inner side."""
_BLOCK_K = 128
"""Input channels of a tile."""
_BLOCK_N = 128
"""Output channels of a tile."""


def into_rank_of_all(x: torch.Tensor, factors: GroupedFactors, tokens: GroupedTokens) -> HiddenOfAll:
    """Return the first product of all tokens x (tokens, in), which may be float32, float16 or bfloat16."""
    h = torch.empty(x.shape[0], factors.widest, dtype=torch.int32, device=x.device)
    top = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if tokens.tiles.shape[0]:
        smoothed = factors.unsmooth is not None
        _into_rank[(tokens.tiles.shape[0], triton.cdiv(factors.widest, _BLOCK_R))](
            x,
            factors.unsmooth if smoothed else x,  # a kernel takes no None; x is not read
            factors.B,
            h,
            top,
            tokens.order,
            tokens.tiles,
            factors.ranks,
            factors.rows,
            tokens.width,
            x.shape[1],
            factors.widest,
            SMOOTHED=smoothed,
            BLOCK_M=tokens.block,
            BLOCK_K=_BLOCK_K,
            BLOCK_R=_BLOCK_R,
            enable_fp_fusion=False,
        )
    return h, top


def add_out_of_rank(
    output: torch.Tensor, hidden: HiddenOfAll, factors: GroupedFactors, module: ModuleFactors, tokens: GroupedTokens
) -> None:
    """Add the second product of one module to its ``output`` (tokens, out), in place, and round once."""
    if not tokens.tiles.shape[0]:
        return
    h, top = hidden
    _out_of_rank[(tokens.tiles.shape[0], triton.cdiv(output.shape[1], _BLOCK_N))](
        h,
        top,
        factors.B_scale,
        module.A,
        module.A_scale,
        output,
        tokens.order,
        tokens.tiles,
        module.places,
        tokens.width,
        output.shape[1],
        factors.widest,
        BLOCK_M=tokens.block,
        BLOCK_R=_BLOCK_R,
        BLOCK_N=_BLOCK_N,
        enable_fp_fusion=False,
    )


@triton.jit
def _token_codes(values, factor):
    """Int8 codes of float32 values times a factor, rounded to the nearest, and halves to even; NaN gives 0."""
    scaled = values * factor
    # 1.5 * 2^23: a float32 of this size has no bits below 1, so that the addition rounds as round_() does.
    rounded = (scaled + 12582912.0) - 12582912.0
    return tl.where(scaled == scaled, rounded, 0.0).to(tl.int8)


@triton.jit
def _tokens_of_tile(order, first, end, width, BLOCK_M: tl.constexpr):
    """The tokens of a tile as rows of x, and which of them exist."""
    place = first + tl.arange(0, BLOCK_M)
    inside = place < end
    row = tl.load(order + place // width, mask=inside, other=0).to(tl.int64)
    return row * width + place % width, inside


@triton.jit
def _inputs(x, unsmooth, token, inside, pack, at, inner, SMOOTHED: tl.constexpr, BLOCK_K: tl.constexpr):
    """A piece of u = x / smooth of the tokens, float32 (BLOCK_M, BLOCK_K); 0 outside."""
    column = at + tl.arange(0, BLOCK_K)
    exists = column < inner
    mask = inside[:, None] & exists[None, :]
    u = tl.load(x + token[:, None] * inner + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if SMOOTHED:
        u = u * tl.load(unsmooth + pack * inner + column, mask=exists, other=0.0)[None, :]
    return u


@triton.jit
def _into_rank(
    x,
    unsmooth,
    B,
    h,
    top,
    order,
    tiles,
    ranks,
    rows,
    width,
    inner,
    widest,
    SMOOTHED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The first product of one tile of tokens with one tile of ranks of its pack."""
    tile = tl.program_id(0)
    pack = tl.load(tiles + 3 * tile).to(tl.int64)
    rank = tl.load(ranks + pack)
    column = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R < rank:
        token, inside = _tokens_of_tile(
            order, tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2), width, BLOCK_M
        )
        largest = tl.zeros((BLOCK_M,), tl.float32)
        is_nan = tl.zeros((BLOCK_M,), tl.int32)
        for at in range(0, inner, BLOCK_K):
            u = _inputs(x, unsmooth, token, inside, pack, at, inner, SMOOTHED, BLOCK_K)
            largest = tl.maximum(largest, tl.max(tl.abs(u), axis=1))
            is_nan = tl.maximum(is_nan, tl.max((u != u).to(tl.int32), axis=1))
        largest = tl.maximum(largest, 1e-30)
        factor = tl.div_rn(tl.full((BLOCK_M,), 127.0, tl.float32), largest)
        B_row = tl.load(rows + pack * widest + column, mask=column < rank, other=0).to(tl.int64)
        total = tl.zeros((BLOCK_M, BLOCK_R), tl.int32)
        for at in range(0, inner, BLOCK_K):
            u = _inputs(x, unsmooth, token, inside, pack, at, inner, SMOOTHED, BLOCK_K)
            codes = _token_codes(u, factor[:, None])
            inside_B = ((at + tl.arange(0, BLOCK_K)) < inner)[:, None] & (column < rank)[None, :]
            b = tl.load(B + B_row[None, :] * inner + (at + tl.arange(0, BLOCK_K))[:, None], mask=inside_B, other=0)
            total = tl.dot(codes, b, total, out_dtype=tl.int32)
        written = inside[:, None] & (column < rank)[None, :]
        tl.store(h + token[:, None] * widest + column[None, :], total, mask=written)
        if tl.program_id(1) == 0:
            tl.store(top + token, tl.where(is_nan > 0, float("nan"), largest), mask=inside)


@triton.jit
def _scaled_ranks(h, B_scale, token, inside, pack, at, first, rank, widest, BLOCK_R: tl.constexpr):
    """A piece of v = h B_scale of the tokens, float32 (BLOCK_M, BLOCK_R); 0 outside."""
    column = at + tl.arange(0, BLOCK_R)
    exists = column < rank
    mask = inside[:, None] & exists[None, :]
    values = tl.load(h + token[:, None] * widest + (first + column)[None, :], mask=mask, other=0).to(tl.float32)
    return values * tl.load(B_scale + pack * widest + first + column, mask=exists, other=0.0)[None, :]


@triton.jit
def _out_of_rank(
    h,
    top,
    B_scale,
    A,
    A_scale,
    output,
    order,
    tiles,
    places,
    width,
    outer,
    widest,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The second product of one tile of tokens with one tile of output channels, added to the output."""
    tile = tl.program_id(0)
    pack = tl.load(tiles + 3 * tile).to(tl.int64)
    rank = tl.load(places + 3 * pack)
    if rank > 0:
        first = tl.load(places + 3 * pack + 1)
        A_row = tl.load(places + 3 * pack + 2).to(tl.int64)
        token, inside = _tokens_of_tile(
            order, tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2), width, BLOCK_M
        )
        largest = tl.zeros((BLOCK_M,), tl.float32)
        for at in range(0, rank, BLOCK_R):
            v = _scaled_ranks(h, B_scale, token, inside, pack, at, first, rank, widest, BLOCK_R)
            largest = tl.maximum(largest, tl.max(tl.abs(v), axis=1))
        largest = tl.maximum(largest, 1e-30)
        factor = tl.div_rn(tl.full((BLOCK_M,), 127.0, tl.float32), largest)
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = column < outer
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for at in range(0, rank, BLOCK_R):
            v = _scaled_ranks(h, B_scale, token, inside, pack, at, first, rank, widest, BLOCK_R)
            codes = _token_codes(v, factor[:, None])
            row = at + tl.arange(0, BLOCK_R)
            inside_A = (row < rank)[:, None] & exists[None, :]
            a = tl.load(A + (A_row + row)[:, None] * outer + column[None, :], mask=inside_A, other=0)
            total = tl.dot(codes, a, total, out_dtype=tl.int32)
        tops = largest * tl.load(top + token, mask=inside, other=0.0)
        scale = tl.load(A_scale + pack * outer + column, mask=exists, other=0.0)[None, :] * tops[:, None]
        place = output + token[:, None] * outer + column[None, :]
        mask = inside[:, None] & exists[None, :]
        before = tl.load(place, mask=mask, other=0.0)
        tl.store(place, (before.to(tl.float32) + total.to(tl.float32) * scale).to(before.dtype), mask=mask)
