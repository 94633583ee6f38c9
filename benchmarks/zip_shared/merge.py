"""What several deltas share: merges of their tensors, pure functions over mappings from a name to its change.

All deltas of a merge have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Tensors = Mapping[str, torch.Tensor]
TRIM = 0.2
"""The share of its entries, the largest ones, that TIES keeps of a delta."""


def mean(deltas: Sequence[Tensors]) -> dict[str, torch.Tensor]:
    """Return the mean of the deltas: the M that makes the sum of all ||delta_k - M||^2 least."""
    return task_arithmetic(deltas, 1 / len(deltas))


def task_arithmetic(deltas: Sequence[Tensors], factor: float) -> dict[str, torch.Tensor]:
    """Return ``factor`` times the sum of the deltas (task arithmetic, arXiv 2212.04089, section 4 [paper])."""
    return {name: factor * sum(delta[name].float() for delta in deltas) for name in deltas[0]}


def ties(deltas: Sequence[Tensors], keep: float = TRIM) -> dict[str, torch.Tensor]:
    """Return the TIES merge with lambda 1 (arXiv 2306.01708, algorithm 1 [paper]).

    - Trim: of each delta, the share ``keep`` of all its entries, those with the largest magnitudes, stays.
    - Elect: an entry gets the sign of the sum of what stayed.
    - Disjoint mean: over the deltas in which the entry stayed with that sign. An entry that nobody kept is 0.
    """
    least = [_threshold(delta, keep) for delta in deltas]
    merged = {}
    for name in deltas[0]:
        own = torch.stack([delta[name].float() for delta in deltas])
        limits = torch.tensor(least).reshape(-1, *[1] * (own.dim() - 1))
        own = torch.where(own.abs() >= limits, own, 0.0)
        agrees = (own.sign() == own.sum(dim=0).sign()) & (own != 0)
        merged[name] = (own * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
    return merged


def minus(delta: Tensors, shared: Tensors) -> dict[str, torch.Tensor]:
    """Return the residual: the delta without the shared part."""
    return {name: delta[name].float() - shared[name] for name in delta}


def norm(tensors: Tensors) -> float:
    """Return the Frobenius norm of all tensors together."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5


def cosine(one: Tensors, other: Tensors) -> float:
    """Return the cosine of the angle between two deltas."""
    product = sum(float((one[name].double() * other[name].double()).sum()) for name in one)
    return product / (norm(one) * norm(other))


def _threshold(delta: Tensors, keep: float) -> float:
    """Return the magnitude of the last entry that is kept."""
    sizes = torch.cat([tensor.float().abs().flatten() for tensor in delta.values()])
    kept = max(1, round(keep * len(sizes)))
    return float(sizes.kthvalue(len(sizes) - kept + 1).values)
