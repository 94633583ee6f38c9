"""Integers of a pack against slow loops."""

from __future__ import annotations

import pytest
import torch

from skillweave.pack import pack_int4, quantise_rows, unpack_int4


def slow_pack(row: list[int]) -> list[int]:
    packed = []
    for at in range(0, len(row), 2):
        low = row[at] % 16
        high = row[at + 1] % 16 if at + 1 < len(row) else 0
        packed.append(low + 16 * high)
    return packed


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
def test_int4_packing_equals_a_slow_loop_and_comes_back(n: int) -> None:
    codes = torch.randint(-8, 8, (5, n), dtype=torch.int8, generator=torch.Generator().manual_seed(n))
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [slow_pack(row) for row in codes.tolist()]
    assert torch.equal(unpack_int4(packed, n), codes)


def test_every_code_survives() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(codes), 16), codes)


def test_empty_and_wrong_input() -> None:
    assert pack_int4(torch.zeros(3, 0, dtype=torch.int8)).shape == (3, 0)
    assert unpack_int4(torch.zeros(3, 0, dtype=torch.uint8), 0).shape == (3, 0)
    with pytest.raises(TypeError, match="int8"):
        pack_int4(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="5 codes need uint8"):
        unpack_int4(torch.zeros(2, 2, dtype=torch.uint8), 5)


def test_int8_rows_are_within_half_a_step() -> None:
    matrix = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    codes, scale = quantise_rows(matrix, 8)
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float16)
    for row in range(7):
        assert float(scale[row]) == pytest.approx(float(matrix[row].abs().max()) / 127, rel=1e-3)
        for column in range(33):
            error = abs(float(matrix[row, column]) - int(codes[row, column]) * float(scale[row]))
            assert error <= 0.5 * float(scale[row]) * 1.2  # the scale in float16 may be a little small


def test_int4_search_beats_plain_rounding_and_stays_symmetric() -> None:
    matrix = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    codes, scale = quantise_rows(matrix, 4)
    assert int(codes.min()) >= -7
    assert int(codes.max()) <= 7
    plain = matrix.abs().amax(1, keepdim=True) / 7
    plain_error = (matrix - (matrix / plain).round() * plain).square().sum(1)
    error = (matrix - codes * scale.float()[:, None]).square().sum(1)
    assert float(error.sum()) < 0.9 * float(plain_error.sum())


def test_zero_rows_and_tiny_rows_give_zero_not_nan() -> None:
    for bits in (4, 8):
        codes, scale = quantise_rows(torch.tensor([[0.0, 0.0], [1e-12, -1e-12], [1.0, -2.0]]), bits)
        assert scale[:2].tolist() == [0.0, 0.0]
        assert codes[:2].tolist() == [[0, 0], [0, 0]]
        assert float(scale[2]) > 0


def test_no_columns() -> None:
    codes, scale = quantise_rows(torch.zeros(3, 0), 8)
    assert codes.shape == (3, 0)
    assert scale.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantise_rows(torch.tensor([[1.0, bad]]), 4)


def test_too_large_for_a_float16_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        quantise_rows(torch.tensor([[1e9, 1.0]]), 8)
