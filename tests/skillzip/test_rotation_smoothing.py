"""Rotation and smoothing change the factors, never the function."""

from __future__ import annotations

import pytest
import torch

from skillweave.pack import quantise_rows
from skillweave.skillzip.rotation import hadamard, orthogonal, rotation
from skillweave.skillzip.smoothing import smoothing_scale


@pytest.mark.parametrize("rank", [1, 2, 3, 7, 8, 12, 18, 64])
def test_rotation_is_orthogonal_and_keeps_the_product(rank: int) -> None:
    turn = rotation(rank, seed=0)
    assert torch.allclose(turn.T @ turn, torch.eye(rank, dtype=torch.float64), atol=1e-12)
    left, right = torch.randn(10, rank).double(), torch.randn(rank, 9).double()
    assert torch.allclose((left @ turn) @ (turn.T @ right), left @ right, atol=1e-10)


def test_hadamard_is_of_ones_and_seeds_decide_the_rest() -> None:
    assert torch.allclose(hadamard(8).abs(), torch.full((8, 8), 8**-0.5, dtype=torch.float64))
    assert torch.equal(orthogonal(5, 3), orthogonal(5, 3))
    assert not torch.allclose(orthogonal(5, 3), orthogonal(5, 4))


def test_rotation_helps_where_singular_values_decay() -> None:
    generator = torch.Generator().manual_seed(0)
    decay = 0.6 ** torch.arange(16).float()
    left = torch.randn(200, 16, generator=generator) * decay.sqrt()
    right = torch.randn(16, 100, generator=generator) * decay.sqrt()[:, None]

    def error(left: torch.Tensor, right: torch.Tensor) -> float:
        (a, sa), (b, sb) = quantise_rows(left, 4), quantise_rows(right, 4)
        return float(((a * sa.float()[:, None]) @ (b * sb.float()[:, None]) - truth).norm() / truth.norm())

    truth = left @ right
    turn = rotation(16, 0).float()
    # Only A's scales run over the rank channels; B's rows have one scale each already.
    assert error(left @ turn, turn.T @ right) < error(left, right) * 1.05


def test_smoothing_formula_and_function() -> None:
    x_max = torch.tensor([1.0, 4.0, 100.0, 0.0])
    b_max = torch.tensor([0.5, 0.1, 0.1, 0.3])
    smooth = smoothing_scale(x_max, b_max, 0.5)
    assert smooth.dtype == torch.float16
    raw = [(x**0.5) / (b**0.5) for x, b in zip(x_max.tolist()[:3], b_max.tolist()[:3], strict=True)]
    mean = (raw[0] * raw[1] * raw[2]) ** (1 / 3)
    assert smooth[:3].tolist() == pytest.approx([value / mean for value in raw], rel=2e-3)
    assert smooth[3] == 1
    x, right = torch.randn(5, 4).double(), torch.randn(2, 4).double()
    s = smooth.double()
    assert torch.allclose((x / s) @ (right * s).T, x @ right.T)


def test_smoothing_of_nothing_and_of_extremes() -> None:
    assert smoothing_scale(torch.zeros(3), torch.ones(3), 0.5).tolist() == [1, 1, 1]
    smooth = smoothing_scale(torch.tensor([1e-30, 1.0, 1e30]), torch.ones(3), 1.0)
    assert bool(torch.isfinite(smooth).all())
    assert float(smooth.min()) > 0
