"""Round numbers one after the other, so that later ones make up for the errors of earlier ones. Pure functions.

GPTQ (Frantar et al., arXiv 2210.17323) rounds the columns of a matrix W in order. After each column it changes those
that are still to come so that the error |(W - rounded) x|^2 over the inputs x, with second moment H = E[x x^T], grows
least. With the upper Cholesky factor T of H^-1, column k > j changes by -(w_j - rounded_j) T_jk / T_jj [paper].
The columns are taken in their own order, not by their importance.
"""

from __future__ import annotations

import torch

from skillweave.pack import dequantise_groups, nearest_codes, quantise_groups

_DAMPING = 0.01
"""This share of the mean of H's diagonal is added to it, as in the paper, so that it can be inverted."""


def gptq_rows(matrix: torch.Tensor, moment: torch.Tensor, bits: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales as of :func:`skillweave.pack.quantise_groups`, rounded for inputs of a second moment.

    The groups lie along the rows of the matrix (rows, n), and ``moment`` is (n, n). The scale of a group is chosen when
    its first column is reached.
    """
    left = matrix.double().clone()
    upper = _upper_factor(moment)
    codes = torch.zeros(matrix.shape, dtype=torch.int8)
    scales = []
    for start in range(0, matrix.shape[1], size):
        group = left[:, start : start + size]
        scale = quantise_groups(group, bits, size)[1]
        errors = torch.zeros_like(group)
        own = upper[start : start + size]
        for j in range(group.shape[1]):
            code = nearest_codes(group[:, j : j + 1].float(), scale, bits)
            codes[:, start + j : start + j + 1] = code
            errors[:, j] = (group[:, j] - dequantise_groups(code, scale, bits, 1)[:, 0]) / own[j, start + j]
            group[:, j + 1 :] -= errors[:, j : j + 1] * own[j, start + j + 1 : start + size]
        left[:, start + size :] -= errors @ own[:, start + size :]
        scales.append(scale)
    return codes, torch.cat(scales, dim=1)


def gptq_columns(
    vectors: torch.Tensor, moment: torch.Tensor, bits: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales as of :func:`skillweave.pack.quantise_groups`, for a matrix given by its columns.

    ``vectors`` (n, rows) are the columns of a matrix whose inputs have the second moment (n, n). The groups lie along
    the columns.
    """
    left = vectors.double().clone()
    upper = _upper_factor(moment)
    codes, scales = [], []
    for j in range(len(vectors)):
        code, scale = quantise_groups(left[j : j + 1], bits, size)
        error = left[j] - dequantise_groups(code, scale, bits, size)[0]
        left[j + 1 :] -= upper[j, j + 1 :, None] * (error / upper[j, j])
        codes.append(code)
        scales.append(scale)
    return torch.cat(codes), torch.cat(scales)


def _upper_factor(moment: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular T with T^T T = (H + damping)^-1, in float64."""
    exact = moment.double()
    mean = float(exact.diagonal().mean())
    damped = exact + (_DAMPING * mean if mean > 0 else 1.0) * torch.eye(len(exact), dtype=torch.float64)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
