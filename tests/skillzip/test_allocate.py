"""The allocation of ranks, compared with brute force."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from skillweave.skillzip.allocate import Matrix, allocate


def value(matrices: list[Matrix], ranks: tuple[int, ...] | list[int]) -> float:
    return sum(float(matrix.gains[:rank].sum()) for matrix, rank in zip(matrices, ranks, strict=True))


def cost(matrices: list[Matrix], ranks: tuple[int, ...] | list[int]) -> int:
    return sum(matrix.cost(rank) for matrix, rank in zip(matrices, ranks, strict=True))


def best(matrices: list[Matrix], budget: int) -> float:
    choices = itertools.product(*(range(0, len(matrix.gains) + 1, matrix.step) for matrix in matrices))
    return max(value(matrices, ranks) for ranks in choices if cost(matrices, ranks) <= budget)


def random_matrices(seed: int, *, equal: bool) -> list[Matrix]:
    rng = random.Random(seed)
    return [
        Matrix(
            torch.tensor(sorted((rng.random() ** 3 for _ in range(5)), reverse=True), dtype=torch.float64),
            rank_bytes=4 if equal else rng.randint(2, 9),
            fixed_bytes=0 if equal else rng.randint(0, 6),
            step=1 if equal else rng.choice([1, 2]),
        )
        for _ in range(3)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_equal_costs_equal_brute_force(seed: int) -> None:
    matrices = random_matrices(seed, equal=True)
    for budget in (0, 3, 4, 17, 30, 60, 100):
        ranks = allocate(matrices, budget)
        assert cost(matrices, ranks) <= budget
        assert value(matrices, ranks) == pytest.approx(best(matrices, budget))


@pytest.mark.parametrize("seed", range(20))
def test_unlike_costs_keep_the_budget_and_lose_at_most_one_step(seed: int) -> None:
    matrices = random_matrices(seed, equal=False)
    for budget in (0, 5, 20, 45, 200):
        ranks = allocate(matrices, budget)
        assert cost(matrices, ranks) <= budget
        assert all(rank % matrix.step == 0 for rank, matrix in zip(ranks, matrices, strict=True))
        step = max(float(matrix.gains.sum()) for matrix in matrices)
        assert value(matrices, ranks) >= best(matrices, budget) - step
    assert value(matrices, allocate(matrices, 10**6)) == pytest.approx(best(matrices, 10**6))


def test_all_seeds_together_are_near_brute_force() -> None:
    found = wanted = 0.0
    for seed in range(30):
        matrices = random_matrices(seed, equal=False)
        found += value(matrices, allocate(matrices, 40))
        wanted += best(matrices, 40)
    assert found > 0.97 * wanted


def test_ranks_without_gain_are_not_bought() -> None:
    flat = Matrix(torch.tensor([1.0, 0.0, 0.0]), rank_bytes=1, fixed_bytes=0)
    none = Matrix(torch.zeros(3), rank_bytes=1, fixed_bytes=0)
    assert allocate([flat, none], 100) == [1, 0]
    assert allocate([], 10) == []
    assert allocate([Matrix(torch.zeros(0), 1, 0)], 10) == [0]


def test_a_dear_matrix_waits_until_its_fixed_bytes_pay() -> None:
    cheap = Matrix(torch.tensor([1.0, 1.0]), rank_bytes=10, fixed_bytes=0)
    dear = Matrix(torch.tensor([1.5, 1.4]), rank_bytes=10, fixed_bytes=100)
    assert allocate([cheap, dear], 20) == [2, 0]
    assert allocate([cheap, dear], 140) == [2, 2]
