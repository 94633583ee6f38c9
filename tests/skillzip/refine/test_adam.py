"""Adam with one second moment a direction, against a loop over single numbers in float64."""

from __future__ import annotations

import math

import pytest
import torch

from skillweave.skillzip.refine.adam import adam_step, moments


def slow(key: str, factor: list[list[float]], gradients: list[list[list[float]]], rate: float) -> list[list[float]]:
    rows, columns = len(factor), len(factor[0])
    first = [[0.0] * columns for _ in range(rows)]
    second: dict[int, float] = {}
    for step, gradient in enumerate(gradients, 1):
        for direction in range(columns if key.endswith(".A") else rows):
            column = [gradient[r][direction] for r in range(rows)]
            members = column if key.endswith(".A") else gradient[direction]
            mean = sum(g * g for g in members) / len(members)
            second[direction] = 0.99 * second.get(direction, 0.0) + 0.01 * mean
        for r in range(rows):
            for c in range(columns):
                first[r][c] = 0.9 * first[r][c] + 0.1 * gradient[r][c]
                size = math.sqrt(second[c if key.endswith(".A") else r] / (1 - 0.99**step))
                way = first[r][c] / (1 - 0.9**step) / size if size else 0.0
                factor[r][c] -= rate * max(-10.0, min(10.0, way))
    return factor


@pytest.mark.parametrize("key", ["layer.A", "layer.B"])
def test_it_is_a_loop_over_single_numbers(key: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(300, 3, generator=generator) if key.endswith(".A") else torch.randn(3, 300, generator=generator)
    gradients = [torch.randn(start.shape, generator=generator) for _ in range(4)]
    for gradient in gradients:
        gradient[0, 0] = 1e3  # more than ten times the root mean square of its direction
    (
        gradients[0][:, 1] if key.endswith(".A") else gradients[0][1]
    ).zero_()  # a direction that begins without a gradient
    factor = start.clone()
    first, second = moments(key, factor)
    for step, gradient in enumerate(gradients, 1):
        adam_step(key, factor, gradient, first, second, step=step, rate=0.1)
    wanted = slow(key, start.double().tolist(), [gradient.double().tolist() for gradient in gradients], 0.1)
    torch.testing.assert_close(factor, torch.tensor(wanted), atol=1e-5, rtol=1e-4)


def test_one_scale_is_one_direction_and_no_gradient_moves_nothing() -> None:
    scale = torch.tensor([2.0])
    first, second = moments("layer.scale", scale)
    adam_step("layer.scale", scale, torch.tensor([3.0]), first, second, step=1, rate=0.5)
    assert scale.tolist() == [1.5]
    still = torch.ones(4, 0)
    adam_step("layer.A", still, torch.zeros(4, 0), *moments("layer.A", still), step=1, rate=0.5)
    row = torch.ones(2, 4)
    adam_step("layer.B", row, torch.zeros(2, 4), *moments("layer.B", row), step=1, rate=0.5)
    assert row.tolist() == [[1.0] * 4] * 2
