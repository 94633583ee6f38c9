"""Compute the best low-rank approximation of a matrix, unweighted or for the inputs of its layer. Pure functions.

For R (out, in) and C = E[x x^T] (in, in), the matrix D of rank r that minimises E|(R - D) x|^2 is U U^T R, where U are
the first r eigenvectors of R C R^T. This equals the truncated SVD of R S with S S^T = C ([ours], see
docs/explanation/skillzip.md; as in SVD-LLM, arXiv 2403.07378), but needs no inverse of S. The error is the sum of the
other eigenvalues. C = I gives the plain SVD (Eckart-Young).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_EXACT_SIDE = 2048
"""Up to this smaller side an exact eigendecomposition is fast enough (0.1 s for 576 on one core). Larger matrices are
decomposed by a randomised method, which computes the leading ranks only."""

_BLOCK = 2**22
"""Numbers that are copied to float64 at a time. A whole embedding in float64 would take more than all else here."""


@dataclass(frozen=True)
class Decomposed:
    """The leading directions of a matrix R (out, in). Its best approximation of rank r is U[:, :r] @ (U^T R)[:r]."""

    U: torch.Tensor
    """(out, k) orthonormal columns"""
    gains: torch.Tensor
    """(k,) float64 in descending order: how much of the squared (weighted) error each rank removes"""
    energy: float
    """the squared (weighted) norm of the whole matrix"""


def shrink(moment: torch.Tensor, share: float) -> torch.Tensor:
    """Return (1 - share) C n / tr(C) + share I for a second moment C (n, n).

    The identity keeps some weight on directions that the calibration prompts did not show. C is scaled to a mean
    eigenvalue of 1, so that the weights say which directions of one input matter, and not which layer: letting the
    activation energy of layers steer the ranks was worse than no weighting in our measurement.
    """
    n = moment.shape[0]
    mean = moment.trace() / n
    scaled = moment / mean if float(mean) > 0 else torch.zeros_like(moment)
    return (1 - share) * scaled + share * torch.eye(n, dtype=moment.dtype)


def root(moment: torch.Tensor) -> torch.Tensor:
    """Return S (in, in) with S S^T = C. Eigenvalues that are negative because of rounding count as 0."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp(min=0).sqrt()


def decompose(matrix: torch.Tensor, max_rank: int, root_of_moment: torch.Tensor | None = None) -> Decomposed:
    """Return the first ``max_rank`` directions of R (out, in), weighted if S (in, in) of :func:`root` is given."""
    weighted = matrix if root_of_moment is None else matrix @ root_of_moment
    energy = sum(float(block.double().square().sum()) for block in _row_blocks(weighted))
    rows, columns = weighted.shape
    rank = min(max_rank, rows, columns)
    if min(rows, columns) > _EXACT_SIDE:
        u, sigma, _ = torch.svd_lowrank(weighted, q=min(rank + 32, rows, columns), niter=4)
        return Decomposed(u[:, :rank].contiguous(), _above_noise(sigma[:rank].square(), matrix), energy)
    if rows <= columns:
        values, vectors = torch.linalg.eigh(_gram(weighted.T))
        u = vectors.flip(1)[:, :rank]
    else:
        values, vectors = torch.linalg.eigh(_gram(weighted))
        leading = vectors.flip(1)[:, :rank]
        # Dividing by tiny singular values would lose orthogonality; QR restores it and keeps the order.
        u = torch.linalg.qr(torch.cat([block.double() @ leading for block in _row_blocks(weighted)]))[0]
    return Decomposed(u.to(matrix.dtype).contiguous(), _above_noise(values.flip(0)[:rank], matrix), energy)


def _gram(tall: torch.Tensor) -> torch.Tensor:
    """Return X^T X (n, n) in float64 for X (m, n).

    It squares the singular values: in float32, those below a thousandth of the largest would be lost.
    """
    total = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for block in _row_blocks(tall):
        exact = block.double()
        total.addmm_(exact.T, exact)
    return total


def _row_blocks(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the matrix in blocks of rows that are small enough to have a copy in float64 each."""
    return matrix.split(max(1, _BLOCK // max(1, matrix.shape[1])))


def _above_noise(values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return squared singular values in float64, with those that come from rounding alone set to 0.

    Otherwise a LoRA's delta would get more ranks than it has. Rounding to precision eps alone gives a matrix singular
    values of about sqrt(n) eps times its largest.
    """
    precision = max(torch.finfo(matrix.dtype).eps ** 2, torch.finfo(torch.float64).eps)
    return torch.where(values > values[0] * max(matrix.shape) * precision, values, 0.0).double()


def balanced(u: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (out, r) = U D and B (r, in) = D^-1 U^T R, where D gives each rank channel the same norm in A and B."""
    right = u.T @ matrix
    size = right.norm(dim=1).clamp(min=torch.finfo(right.dtype).tiny).sqrt()
    return u * size, right / size[:, None]
