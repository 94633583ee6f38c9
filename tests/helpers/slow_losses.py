"""TPAW's losses as slow loops in plain Python, and random log-probabilities to try them on."""

from __future__ import annotations

import math

import torch

LAM, ETA, GAMMA = 0.3, 6.0, 0.5


def drawn(players: int, pairs: int, *, seed: int = 0, spread: float = 4.0) -> list[torch.Tensor]:
    """Random float64 log-probabilities: the policy's of targets and generations (B,), the players' of both (P, B)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(pairs,), (pairs,), (players, pairs), (players, pairs)]
    return [-20 + spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def softened(margin: float) -> float:
    """log(1 + e^-margin), written so that neither side overflows."""
    return max(0.0, -margin) + math.log1p(math.exp(-abs(margin)))


def slow_weights(target, generated, player_target, player_generated, eta=ETA, gamma=GAMMA, lam=LAM):
    """alpha and beta of one pair: lists over the players."""
    alpha, strength = [], []
    for of_target, of_generated in zip(player_target, player_generated, strict=True):
        gained, given = lam * (target - of_target), lam * (generated - of_generated)
        alpha.append(eta if gained <= 0 else 1.0)
        strength.append(math.exp(-gamma * (gained - given)))
    return alpha, [one / sum(strength) for one in strength]


def slow_loss(target, generated, player_target, player_generated, alpha, beta, lam=LAM) -> float:
    """The team loss of one pair, with given weights."""
    players = zip(player_target, player_generated, alpha, beta, strict=True)
    return sum(b * softened(a * lam * (target - t) - lam * (generated - g)) for t, g, a, b in players)


def columns(four: list[torch.Tensor]):
    """Pair by pair: floats of the policy, lists over the players."""
    target, generated, player_target, player_generated = (tensor.tolist() for tensor in four)
    for pair in range(len(target)):
        yield (
            target[pair],
            generated[pair],
            [row[pair] for row in player_target],
            [row[pair] for row in player_generated],
        )
