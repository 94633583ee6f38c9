"""The best low-rank matrix, plain or for the inputs that the layer really sees. Pure functions.

For R (out, in) and C = E[x x^T] (in, in), the rank-r matrix D that makes E|(R - D) x|^2 least is U U^T R, with U the
first r eigenvectors of R C R^T: the same as the truncated SVD of R S with S S^T = C ([ours] in
methods/skillweave.md, as in SVD-LLM, arXiv 2403.07378), but with no inverse of S to take. Its error is the sum of the
other eigenvalues. C = I is the plain SVD (Eckart-Young).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_EXACT_SIDE = 2048
"""Up to this smaller side an eigendecomposition is exact and fast (0.1 s for 576 on one core); beyond it the
randomised method takes over, for it needs the leading ranks only."""


@dataclass(frozen=True)
class Decomposed:
    """The leading directions of a matrix (out, in): its best approximation of rank r is U[:, :r] @ (U^T R)[:r]."""

    U: torch.Tensor
    """(out, k) orthonormal columns"""
    gains: torch.Tensor
    """(k,) float64, falling: what each rank takes off the squared (weighted) error"""
    energy: float
    """the squared (weighted) norm of the whole matrix"""


def shrink(moment: torch.Tensor, share: float) -> torch.Tensor:
    """(1 - share) C n / tr(C) + share I: directions that calibration happened not to show keep some weight.

    C is brought to a mean eigenvalue of 1, so that weights say which directions of one input matter, and not which
    layer: letting the layers' activation energy steer the ranks was worse than plain in our measurement.
    """
    n = moment.shape[0]
    mean = moment.trace() / n
    scaled = moment / mean if float(mean) > 0 else torch.zeros_like(moment)
    return (1 - share) * scaled + share * torch.eye(n, dtype=moment.dtype)


def root(moment: torch.Tensor) -> torch.Tensor:
    """S with S S^T = C, (in, in); eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp(min=0).sqrt()


def decompose(matrix: torch.Tensor, max_rank: int, root_of_moment: torch.Tensor | None = None) -> Decomposed:
    """The first ``max_rank`` directions of R (out, in), weighted where S (in, in) of :func:`root` is given."""
    weighted = matrix if root_of_moment is None else matrix @ root_of_moment
    energy = float(weighted.double().square().sum())
    rows, columns = weighted.shape
    rank = min(max_rank, rows, columns)
    if min(rows, columns) > _EXACT_SIDE:
        u, sigma, _ = torch.svd_lowrank(weighted, q=min(rank + 32, rows, columns), niter=4)
        return Decomposed(u[:, :rank].contiguous(), _above_noise(sigma[:rank].square(), matrix), energy)
    # A Gram matrix squares the singular values: in float32 those below a thousandth of the largest would drown.
    exact = weighted.double()
    if rows <= columns:
        values, vectors = torch.linalg.eigh(exact @ exact.T)
        u = vectors.flip(1)[:, :rank]
    else:
        values, vectors = torch.linalg.eigh(exact.T @ exact)
        # Dividing by tiny singular values would lose orthogonality; QR keeps the order and mends it.
        u = torch.linalg.qr(exact @ vectors.flip(1)[:, :rank])[0]
    return Decomposed(u.to(matrix.dtype).contiguous(), _above_noise(values.flip(0)[:rank], matrix), energy)


def _above_noise(values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Squared singular values in float64, those that are only rounding set to 0: a LoRA has no more ranks than its own.

    A matrix rounded to precision eps has singular values of about sqrt(n) eps of its largest from rounding alone.
    """
    precision = max(torch.finfo(matrix.dtype).eps ** 2, torch.finfo(torch.float64).eps)
    return torch.where(values > values[0] * max(matrix.shape) * precision, values, 0.0).double()


def balanced(u: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A (out, r) = U D and B (r, in) = D^-1 U^T R, where D gives each rank channel the same norm in A as in B."""
    right = u.T @ matrix
    size = right.norm(dim=1).clamp(min=torch.finfo(right.dtype).tiny).sqrt()
    return u * size, right / size[:, None]
