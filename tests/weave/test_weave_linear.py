from __future__ import annotations

import gc
import weakref

import pytest
import torch

from helpers.factors import random_factors
from skillweave.pack import LowRank, reference_forward
from skillweave.weave import linear
from skillweave.weave.coded_factors import CodedFactors, Target
from skillweave.weave.factors import Factors
from skillweave.weave.linear import (
    Segment,
    add_to_rows,
    float_matmul,
    int_matmul,
    into_rank,
    out_of_rank,
    token_codes,
)
from skillweave.weave.stack import GroupStack, RowPacks, segments

CPU = torch.device("cpu")
INNER = 24


def stack_of(packs: dict[str, dict[str, LowRank]]) -> GroupStack:
    stack = GroupStack()
    for name, modules in packs.items():
        smooth = next(iter(modules.values())).smooth
        unsmooth = None if smooth is None else 1 / smooth.float()
        stack.add(name, {module: Factors.of(parts, CPU) for module, parts in modules.items()}, unsmooth)
    return stack


@pytest.fixture
def packs() -> dict[str, dict[str, LowRank]]:
    smooth = (torch.rand(INNER, generator=torch.Generator().manual_seed(9)) + 0.5).half()
    return {
        "a": {"q": random_factors(1, 16, INNER, 5, smooth=smooth), "k": random_factors(2, 8, INNER, 3, smooth=smooth)},
        "b": {"q": random_factors(3, 16, INNER, 4, largest=127), "k": random_factors(4, 8, INNER, 6, largest=127)},
        "c": {"k": random_factors(5, 8, INNER, 2)},
    }


def grouped_delta(x: torch.Tensor, segments: list[Segment], module: str) -> torch.Tensor:
    """What the packs add to the output of ``module``: float (N, T, in) -> float32 (N, T, out); 0 where no pack is used.

    The packed model runs the same three steps, and shares the first among the modules of a group.
    """
    width = segments[0].parts[module].A.shape[1]
    total = torch.zeros(*x.shape[:-1], width, device=x.device)
    for segment in segments:
        add_to_rows(total, segment.rows, out_of_rank(into_rank(x, segment), segment.parts[module]))
    return total


def plain_python(x: list[float], parts: LowRank) -> list[float]:
    """One token, the recipe as it is written in the brief, in Python's own numbers."""

    def codes(values: list[float]) -> tuple[list[int], float]:
        scale = max(abs(v) for v in values) / 127
        return [round(v / scale) if scale else 0 for v in values], scale

    smooth = [1.0] * len(x) if parts.smooth is None else parts.smooth.tolist()
    q, scale = codes([v / s for v, s in zip(x, smooth, strict=True)])
    h = [sum(a * b for a, b in zip(q, row, strict=True)) for row in parts.B.tolist()]
    c, second = codes([v * scale * s for v, s in zip(h, parts.B_scale.tolist(), strict=True)])
    y = [sum(a * b for a, b in zip(c, row, strict=True)) for row in parts.A.tolist()]
    return [v * second * s for v, s in zip(y, parts.A_scale.tolist(), strict=True)]


@pytest.mark.parametrize("stacked", [True, False])
def test_every_row_meets_its_own_pack_as_the_slow_recipe_says(packs, stacked):
    rows = ["a", "b", None, "c", "a"]
    x = torch.randn(len(rows), 3, INNER, generator=torch.Generator().manual_seed(0))
    parts = segments(stack_of(packs), RowPacks(rows), stacked=stacked)
    assert len(parts) == (1 if stacked else 3)
    got = grouped_delta(x, parts, "k")
    for index, name in enumerate(rows):
        for token in range(3):
            want = [0.0] * 8 if name is None else plain_python(x[index, token].tolist(), packs[name]["k"])
            # float32 and float64 may round a code that lies on a half to either side, which no token here does.
            torch.testing.assert_close(got[index, token], torch.tensor(want), rtol=1e-5, atol=1e-5)


def test_stacked_and_single_segments_agree_to_the_bit(packs):
    rows = ["c", "a", "b", "a", None, "b"]
    stack = stack_of(packs)
    x = torch.randn(6, 7, INNER, generator=torch.Generator().manual_seed(1))
    one, many = segments(stack, RowPacks(rows), stacked=True), segments(stack, RowPacks(rows), stacked=False)
    parts = [module for module in ("q", "k") for segment in many if module in segment.parts]
    assert parts == ["q", "q", "k", "k", "k"]
    assert torch.equal(grouped_delta(x, one, "k"), grouped_delta(x, many, "k"))


def test_against_the_packs_own_reference(packs):
    x = torch.randn(2, 50, INNER, generator=torch.Generator().manual_seed(2))
    got = grouped_delta(x, segments(stack_of(packs), RowPacks(["b", "b"]), stacked=False), "q")
    torch.testing.assert_close(got, reference_forward(x, packs["b"]["q"]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_pack_of_rank_one(tokens: int) -> None:
    parts = {"q": random_factors(8, 16, INNER, 1, largest=127), "k": random_factors(9, 9, INNER, 1)}
    x = torch.randn(1, tokens, INNER, generator=torch.Generator().manual_seed(4))
    for module, own in parts.items():
        got = grouped_delta(x, segments(stack_of({"p": parts}), RowPacks(["p"]), stacked=False), module)
        torch.testing.assert_close(got, reference_forward(x, own), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 7, 1), (1, 7, 9), (5, 1, 9), (5, 7, 1), (1, 1, 1)])
def test_products_do_not_depend_on_the_strides_of_single_rows_and_columns(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    source = torch.Generator().manual_seed(0)
    left = torch.randint(-127, 128, (rows, inner), generator=source, dtype=torch.int8)
    right = torch.randint(-127, 128, (inner, columns), generator=source, dtype=torch.int8)
    want = (left.long() @ right.long()).int()
    for a in (left, left.T.contiguous().T):
        for b in (right, right.T.contiguous().T, right.T.contiguous().T.contiguous()):
            assert torch.equal(int_matmul(a, b), want)


def test_a_token_of_zeros_gives_zero_and_a_nan_stays_seen(packs):
    x = torch.zeros(2, 2, INNER)
    x[1, 1, 0] = float("nan")
    got = grouped_delta(x, segments(stack_of(packs), RowPacks(["a", "b"]), stacked=True), "k")
    assert torch.equal(got[0], torch.zeros(2, 8))
    assert torch.equal(got[1, 0], torch.zeros(8))
    assert got[1, 1].isnan().all()


def test_ranks_of_small_codes_stay_packed_beside_wide_ones() -> None:
    parts = random_factors(6, 9, INNER, 13, largest=7)
    parts.B[4], parts.A[2, 11] = 100, -127  # two wide ranks: a whole block of four is held in eight bits
    held = Factors.of(parts, CPU)
    assert [(codes.bits, codes.rank) for codes in held.codes] == [(8, 4), (4, 9)]
    assert held.nbytes == 4 * (9 + INNER) + 9 * 5 + 9 * INNER // 2 + 13 * 4 + 9 * 2
    product = parts.A.float() * parts.B_scale.float() @ parts.B.float()
    got = held.unpacked()
    torch.testing.assert_close(got.A.T.float() * got.B_scale @ got.B.float(), product)
    none = Factors.of(random_factors(7, 9, INNER, 0), CPU)
    assert (none.rank, none.unpacked().B.shape) == (0, (0, INNER))


def test_small_codes_stay_packed(packs):
    stack = stack_of(packs)
    assert [[codes.bits for codes in stack.factors[pack]["k"].codes] for pack in "bc"] == [[8], [4]]
    held = stack.factors["c"]["k"]
    (codes,) = held.codes
    assert (held.codes_of_A(codes).nbytes, held.codes_of_B(codes).nbytes, held.A_scale.dtype) == (
        8 * 1,
        2 * INNER // 2,
        torch.float16,
    )
    x = torch.randn(1, 1, INNER)
    got = grouped_delta(x, segments(stack, RowPacks(["b"]), stacked=False), "k")
    torch.testing.assert_close(got, reference_forward(x, packs["b"]["k"]), rtol=1e-4, atol=1e-3)


def test_a_pack_lies_in_one_buffer_that_is_freed_with_it(packs):
    own = packs["b"] | packs["c"]
    coded = CodedFactors([Target(name, "group", (name, f"{name} too")) for name in own], own.__getitem__, CPU)
    laid = coded.laid_out()["group"]
    assert laid.keys() == {*own, *(f"{name} too" for name in own)}
    laid = {name: laid[name] for name in own}
    flat = next(iter(laid.values())).flat
    assert all(factors.flat is flat and factors.at % 64 == 0 for factors in laid.values())
    assert (
        sum(factors.nbytes for factors in laid.values())
        <= flat.nbytes
        == coded.laid_out_nbytes
        < sum(f.nbytes + 64 for f in laid.values())
    )
    for name, parts in own.items():
        held = laid[name].unpacked()
        product = parts.A.float() * parts.A_scale.float()[:, None] * parts.B_scale.float() @ parts.B.float()
        torch.testing.assert_close(
            (held.A.T.float() * held.A_scale[:, None] * 127**2 * held.B_scale) @ held.B.float(),
            product,
            rtol=1e-4,
            atol=1e-3,
        )
    room = weakref.ref(flat)
    del flat, laid, held
    gc.collect()
    assert room() is None
    assert not CodedFactors([], own.__getitem__, CPU).laid_out()


@pytest.mark.gpu
def test_ranks_are_filled_up_to_eight_for_cuda_without_changing_the_result(packs):
    device = torch.device("cuda")
    stack = GroupStack()
    stack.add("b", {"q": Factors.of(packs["b"]["q"], device)}, None)
    x = torch.randn(2, 5, INNER)
    got = grouped_delta(x.to(device), segments(stack, RowPacks(["b", None]), stacked=True), "q")
    torch.testing.assert_close(got[0].cpu(), reference_forward(x[0], packs["b"]["q"]), rtol=1e-4, atol=1e-3)
    assert not got[1].any()


@pytest.mark.parametrize(("m", "k", "n"), [(1, 3, 2), (5, 2500, 9), (17, 8, 8), (40, 1024, 33)])
def test_integer_products_are_exact_even_at_the_largest_codes(m, k, n):
    source = torch.Generator().manual_seed(m)
    a = torch.randint(-127, 128, (m, k), generator=source, dtype=torch.int8)
    b = torch.randint(-127, 128, (k, n), generator=source, dtype=torch.int8)
    a[0], b[:, 0] = 127, 127
    want = (a.long() @ b.long()).int()
    assert torch.equal(int_matmul(a, b), want)
    assert torch.equal(float_matmul(a, b), want)
    assert torch.equal(linear._padded_int_mm(a, b), want)
    assert torch.equal(int_matmul(a, b.T.contiguous().T), want)


def test_an_empty_product_is_empty():
    assert int_matmul(torch.zeros(0, 4, dtype=torch.int8), torch.zeros(4, 3, dtype=torch.int8)).shape == (0, 3)


def test_the_float_backend_is_taken_where_integers_fail(monkeypatch):
    def refuse(*_):
        raise RuntimeError("not implemented on this device")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    linear._int_mm_is_exact.cache_clear()
    try:
        a = torch.full((2, 4), 127, dtype=torch.int8)
        assert int_matmul(a, a.T).tolist() == [[4 * 127 * 127] * 2] * 2
        monkeypatch.setattr(torch, "_int_mm", lambda a, b: float_matmul(a, b).clamp(-(2**15), 2**15))
        linear._int_mm_is_exact.cache_clear()
        assert not linear._int_mm_is_exact(CPU)  # a saturating product is found out
    finally:
        linear._int_mm_is_exact.cache_clear()


def test_token_codes_reach_the_largest_and_round_to_nearest():
    codes, top = token_codes(torch.tensor([[2.54, -1.27, 0.011, 0.0]]))
    assert codes.tolist() == [[127, -64, 1, 0]] or codes.tolist() == [[127, -63, 1, 0]]
    assert top.tolist() == [[pytest.approx(2.54)]]
