"""Rotate the rank channels of two factors by an orthogonal matrix. Pure functions.

This is part (b) of SkillZip's double smoothing ([digest], see docs/explanation/skillzip.md). Singular values decay
fast, so the rank channels of A and B differ by orders of magnitude and cannot share integer codes well. For any
orthogonal Q, A B = (A Q)(Q^T B), and Q mixes the channels until all have a similar size. Q is folded into the factors,
so it costs nothing at run time.
"""

from __future__ import annotations

import torch


def hadamard(n: int) -> torch.Tensor:
    """Return the normalised Hadamard matrix of Sylvester's construction, float64 (n, n). n must be a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < n:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return matrix / n**0.5


def orthogonal(n: int, seed: int) -> torch.Tensor:
    """Return a random orthogonal matrix, uniform over the group, float64 (n, n); equal seeds give equal matrices."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return (q * r.diagonal().sign()).contiguous()


def rotation(rank: int, seed: int) -> torch.Tensor:
    """Return Q, float64 (rank, rank).

    If ``rank`` is a power of two, Q is the Hadamard matrix. Otherwise it is the Kronecker product of the largest
    Hadamard matrix whose size divides ``rank`` and a seeded random orthogonal matrix of the odd part.
    """
    power = rank & -rank
    return torch.kron(hadamard(power), orthogonal(rank // power, seed))
