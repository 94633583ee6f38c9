"""GPTQ against its definition: what is left is changed to the least-squares optimum after each column."""

from __future__ import annotations

import pytest
import torch

from skillweave.pack import dequantise_groups, nearest_codes, quantise_groups
from skillweave.skillzip.gptq import gptq_columns, gptq_rows


def moment_of(n: int, seed: int = 0) -> torch.Tensor:
    """A second moment whose inputs are correlated, of full rank."""
    inputs = torch.randn(5 * n, n, generator=torch.Generator().manual_seed(seed))
    mixed = inputs @ torch.randn(n, n, generator=torch.Generator().manual_seed(seed + 1))
    return mixed.T @ mixed / len(mixed)


def damped(moment: torch.Tensor) -> torch.Tensor:
    exact = moment.double()
    return exact + 0.01 * exact.diagonal().mean() * torch.eye(len(exact)).double()


def remaining(matrix: torch.Tensor, rounded: torch.Tensor, moment: torch.Tensor, j: int) -> torch.Tensor:
    """The columns from j on that are best if the columns before j are those of ``rounded``."""
    moved = (matrix - rounded)[:, :j]
    return matrix[:, j:] + moved @ torch.linalg.solve(moment[j:, j:], moment[j:, :j]).T


@pytest.mark.parametrize("bits", [2, 4])
def test_rows_equal_the_least_squares_optimum_column_by_column(bits: int) -> None:
    matrix = torch.randn(3, 12, generator=torch.Generator().manual_seed(2)).double()
    moment, size = moment_of(12), 5
    codes, scale = gptq_rows(matrix, moment, bits, size)
    rounded = torch.zeros_like(matrix)
    for j in range(12):
        left = remaining(matrix, rounded, damped(moment), j)
        if j % size == 0:
            own = quantise_groups(left[:, :size], bits, size)[1]
            assert torch.equal(scale[:, j // size : j // size + 1], own)
        want = nearest_codes(left[:, :1].float(), own, bits)
        assert torch.equal(codes[:, j : j + 1], want)
        rounded[:, j] = dequantise_groups(want, own, bits, 1)[:, 0]
    assert torch.equal(dequantise_groups(codes, scale, bits, size), rounded.float())


def test_columns_equal_the_least_squares_optimum_column_by_column() -> None:
    vectors = torch.randn(7, 9, generator=torch.Generator().manual_seed(3)).double()
    moment, bits, size = moment_of(7), 3, 4
    codes, scale = gptq_columns(vectors, moment, bits, size)
    rounded = torch.zeros_like(vectors)
    for j in range(7):
        left = remaining(vectors.T, rounded.T, damped(moment), j)
        code, own = quantise_groups(left[:, :1].T, bits, size)
        assert torch.equal(codes[j : j + 1], code)
        assert torch.equal(scale[j : j + 1], own)
        rounded[j] = dequantise_groups(code, own, bits, size)[0]


def test_it_beats_plain_rounding_for_the_inputs_and_takes_any_moment() -> None:
    matrix = torch.randn(32, 48, generator=torch.Generator().manual_seed(4))
    moment = moment_of(48)

    def error(rounded: tuple[torch.Tensor, torch.Tensor], size: int) -> float:
        lost = matrix - dequantise_groups(*rounded, 3, size)
        return float((lost @ moment * lost).sum())

    assert error(gptq_rows(matrix, moment, 3, 16), 16) < 0.7 * error(quantise_groups(matrix, 3, 16), 16)
    columns = gptq_columns(matrix.T.contiguous(), moment, 3, 16)
    lost = matrix - dequantise_groups(*columns, 3, 16).T
    assert float((lost @ moment * lost).sum()) < 0.8 * error(quantise_groups(matrix, 3, 16), 16)
    codes, scale = gptq_rows(matrix, torch.zeros(48, 48), 3, 16)  # no input at all: plain rounding
    plain_codes, plain_scale = quantise_groups(matrix, 3, 16)
    assert torch.equal(codes, plain_codes)
    assert torch.equal(scale, plain_scale)
