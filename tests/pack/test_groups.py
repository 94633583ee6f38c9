"""Streams of bits and groups of codes against slow loops."""

from __future__ import annotations

import math

import pytest
import torch

from skillweave.pack import (
    dequantise_groups,
    nearest_codes,
    pack_codes,
    pack_int4,
    quantise_groups,
    quantise_signs,
    unpack_codes,
)

WIDTHS = (1, 2, 3, 4, 8)


def slow_pack(row: list[int], bits: int) -> list[int]:
    stream = [(code >> bit) & 1 for code in row for bit in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [sum(stream[at + bit] << bit for bit in range(8)) for at in range(0, len(stream), 8)]


def levels(bits: int) -> list[int]:
    """The whole numbers that can be stored."""
    if bits >= 4:
        return list(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))
    return list(range(-(2**bits) + 1, 2**bits, 2))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 17, 64])
def test_packing_equals_a_slow_loop_and_comes_back(bits: int, n: int) -> None:
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (5, n), dtype=torch.int8, generator=torch.Generator().manual_seed(n))
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [slow_pack(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack_codes(packed, n, bits), codes)
    assert torch.equal(unpack_codes(pack_codes(codes.T.contiguous().T, bits), n, bits), codes)
    if bits == 4:
        assert torch.equal(packed, pack_int4(codes))


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_alone_and_none(bits: int) -> None:
    for code in range(-(2 ** (bits - 1)), 2 ** (bits - 1)):
        one = torch.tensor([code], dtype=torch.int8)
        assert torch.equal(unpack_codes(pack_codes(one, bits), 1, bits), one)
    assert pack_codes(torch.zeros(3, 0, dtype=torch.int8), bits).shape == (3, 0)
    assert unpack_codes(torch.zeros(3, 0, dtype=torch.uint8), 0, bits).shape == (3, 0)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(TypeError, match="int8"):
        pack_codes(torch.zeros(2, 2), 3)
    with pytest.raises(ValueError, match="5 codes of 3 bits need uint8"):
        unpack_codes(torch.zeros(2, 3, dtype=torch.uint8), 5, 3)
    for bad in (float("nan"), float("inf")):
        matrix = torch.ones(2, 3)
        matrix[1, 2] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantise_signs(matrix)
        for bits in WIDTHS:
            with pytest.raises(ValueError, match="NaN or infinity"):
                quantise_groups(matrix, bits, 2)


def slow_group(group: list[float], scale: float, bits: int) -> list[float]:
    """The nearest storable number to each number of a group; ties go to any of the two."""
    return [min((level * scale for level in levels(bits)), key=lambda value: abs(value - x)) for x in group]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("n", "size"), [(1, 1), (5, 8), (16, 8), (19, 8), (3, 1)])
def test_groups_equal_a_slow_loop(bits: int, n: int, size: int) -> None:
    matrix = torch.randn(4, n, generator=torch.Generator().manual_seed(n))
    codes, scale = quantise_groups(matrix, bits, size)
    assert (codes.dtype, codes.shape) == (torch.int8, (4, n))
    assert (scale.dtype, scale.shape) == (torch.bfloat16, (4, math.ceil(n / size)))
    restored = dequantise_groups(codes, scale, bits, size)
    for row in range(4):
        for at in range(scale.shape[1]):
            group = matrix[row, at * size : (at + 1) * size].tolist()
            step, largest = float(scale[row, at]), max(map(abs, group))
            if bits == 1:
                assert step == pytest.approx(sum(map(abs, group)) / len(group), rel=2**-8)
            elif bits >= 4:
                assert step == pytest.approx(largest / max(levels(bits)), rel=2**-8)
            else:
                assert 0.29 * largest <= step * max(levels(bits)) <= 1.01 * largest
            found = restored[row, at * size : (at + 1) * size].tolist()
            for x, got, want in zip(group, found, slow_group(group, step, bits), strict=True):
                assert abs(got - x) == pytest.approx(abs(want - x), abs=1e-6)


@pytest.mark.parametrize("bits", [2, 3])
def test_narrow_groups_are_near_the_best_scale(bits: int) -> None:
    matrix = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    restored = dequantise_groups(*quantise_groups(matrix, bits, 128), bits, 128)
    for row, got in zip(matrix, restored, strict=True):
        scales = torch.linspace(0.02, 1.0, 200) * float(row.abs().max())
        tried = [nearest_codes(row, scale, bits) for scale in scales]
        errors = [(row - scale * (2 * codes + 1)).square().sum() for codes, scale in zip(tried, scales, strict=True)]
        assert float((row - got).square().sum()) < 1.1 * float(min(errors))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 6e4])
def test_tiny_and_huge_numbers_keep_their_relative_error(bits: int, size: float) -> None:
    matrix = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    plain = dequantise_groups(*quantise_groups(matrix, bits, 16), bits, 16)
    scaled = dequantise_groups(*quantise_groups(matrix * size, bits, 16), bits, 16)
    assert float((scaled / size - plain).norm() / plain.norm()) < 0.02


@pytest.mark.parametrize("bits", WIDTHS)
def test_zeros_and_equal_numbers(bits: int) -> None:
    matrix = torch.tensor([[0.0] * 5, [0.5] * 5, [-0.5] * 5, [1e-45] * 5])
    restored = dequantise_groups(*quantise_groups(matrix, bits, 3), bits, 3)
    torch.testing.assert_close(restored, matrix, rtol=2**-7, atol=1e-44)
    assert bool((restored[0] == 0).all())


def test_too_large_for_a_scale() -> None:
    for bits in WIDTHS:
        with pytest.raises(ValueError, match="too large for the scale of a group"):
            quantise_groups(torch.full((1, 4), 1e10), bits, 4)
    with pytest.raises(ValueError, match="too large for the scale of a matrix"):
        quantise_signs(torch.full((1, 4), 1e10))


def test_signs_and_their_mean() -> None:
    matrix = torch.tensor([[0.5, -0.25, 0.0], [-0.0, -1.0, 0.25]])
    codes, scale = quantise_signs(matrix)
    assert codes.tolist() == [[0, -1, 0], [0, -1, 0]]
    assert scale.tolist() == [pytest.approx(2 / 6)]
    restored = dequantise_groups(codes, scale, 1, None)
    assert torch.equal(restored, torch.tensor([[1, -1, 1], [1, -1, 1]]) * scale)
    assert quantise_signs(torch.full((3, 3), 1e-30))[1].tolist() == [pytest.approx(1e-30)]
