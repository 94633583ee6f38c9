"""Low-rank approximations, compared with closed forms in float64."""

from __future__ import annotations

import pytest
import torch

from skillweave.skillzip import lowrank
from skillweave.skillzip.lowrank import balanced, decompose, root, shrink


def problem(out: int, in_: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(out + in_)
    x = torch.randn(300, in_, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 5, in_).double()
    return torch.randn(out, in_, generator=generator, dtype=torch.float64), x.T @ x / 300


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9), (1, 5), (5, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_error_is_the_tail_of_the_singular_values(shape: tuple[int, int], weighted: bool) -> None:
    matrix, moment = problem(*shape)
    s = torch.linalg.cholesky(moment) if weighted else torch.eye(shape[1], dtype=torch.float64)
    sigma = torch.linalg.svdvals(matrix @ s)
    found = decompose(matrix, 99, root(moment) if weighted else None)
    assert torch.allclose(found.gains, sigma.square(), rtol=1e-8)
    assert found.energy == pytest.approx(float(sigma.square().sum()))
    for rank in range(1, min(shape) + 1):
        left, right = balanced(found.U[:, :rank], matrix)
        error = ((matrix - left @ right) @ s).square().sum()
        assert float(error) == pytest.approx(float(sigma[rank:].square().sum()), abs=1e-9 * found.energy)


def test_weighting_is_better_on_the_inputs_and_worse_off_them() -> None:
    matrix, moment = problem(16, 24)
    s = root(moment)
    plain, aware = decompose(matrix, 4), decompose(matrix, 4, s)
    losses = [((matrix - found.U @ (found.U.T @ matrix)) @ s).norm() for found in (plain, aware)]
    assert losses[1] < 0.95 * losses[0]


def test_root_and_shrink() -> None:
    _, moment = problem(3, 6)
    s = root(moment)
    assert torch.allclose(s @ s.T, moment)
    assert torch.allclose(shrink(moment, 0.0), moment * 6 / moment.trace())
    assert torch.allclose(shrink(moment, 1.0), torch.eye(6).double())
    assert float(shrink(moment, 0.3).trace()) == pytest.approx(6)
    assert torch.equal(shrink(torch.zeros(2, 2), 0.5), 0.5 * torch.eye(2))
    singular = torch.zeros(3, 3)
    assert torch.equal(root(singular), torch.zeros(3, 3))


def test_float32_is_near_float64() -> None:
    matrix, _ = problem(40, 60)
    found = decompose(matrix.float(), 10)
    assert torch.allclose(found.gains, torch.linalg.svdvals(matrix)[:10].square(), rtol=1e-4)
    assert torch.allclose(found.U.T @ found.U, torch.eye(10), atol=1e-5)


def test_ranks_that_are_only_rounding_gain_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    lora = torch.randn(50, 4, generator=generator) @ torch.randn(4, 30, generator=generator)
    gains = decompose(lora, 20).gains
    assert int((gains > 0).sum()) == 4
    assert not bool(decompose(torch.zeros(5, 6), 3).gains.any())


def test_the_randomised_method_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(120, 90, generator=generator) @ torch.diag(0.8 ** torch.arange(90).float())
    exact = decompose(matrix, 8)
    monkeypatch.setattr(lowrank, "_EXACT_SIDE", 10)
    fast = decompose(matrix, 8)
    assert torch.allclose(fast.gains, exact.gains, rtol=1e-3)
    assert torch.allclose((fast.U.T @ exact.U).abs().diagonal(), torch.ones(8), atol=1e-2)


def test_balanced_factors_have_channels_of_one_size() -> None:
    matrix, _ = problem(12, 20)
    left, right = balanced(decompose(matrix, 5).U, matrix)
    assert torch.allclose(left.norm(dim=0), right.norm(dim=1))
    zero = balanced(decompose(torch.zeros(4, 4), 2).U, torch.zeros(4, 4))
    assert all(bool(torch.isfinite(factor).all()) for factor in zero)
