"""The product of two factors that is nearest to a matrix, among all products of a given rank.

Source: Eckart and Young 1936: the first singular values and vectors give it, and what is lost is the sum of the squares
of the other singular values [relative].
"""

from __future__ import annotations

import torch
from torch import Tensor

_ZERO = 1e-6
"""Singular values below this share of the largest are rounding errors of float32."""


def nearest_product(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return factors (out, r) and (r, in) of at most ``rank`` nearest to ``left @ right``, and what they lose of it.

    The loss is a squared norm. Factors of at most ``rank`` are returned as they are, with a loss of 0. Computed in
    float64 without the product, from the factors' QR decompositions.
    """
    if left.shape[1] <= rank:
        return left, right, 0.0
    base_left, inner_left = torch.linalg.qr(left.double())
    base_right, inner_right = torch.linalg.qr(right.double().T)
    near_left, near_right, lost = _cut(inner_left @ inner_right.T, rank)
    return (base_left @ near_left).float(), (near_right @ base_right.T).float(), lost


def nearest_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return factors (out, r) and (r, in) of at most ``rank`` nearest to a matrix, and the squared norm they lose."""
    near_left, near_right, lost = _cut(matrix.float(), rank)
    return near_left, near_right, lost


def _cut(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = max(1, min(rank, int((values > _ZERO * values[0]).sum())))
    root = values[:kept].sqrt()
    return left[:, :kept] * root, root[:, None] * right[:kept], float(values[kept:].double().square().sum())
