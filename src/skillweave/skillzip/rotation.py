"""An orthogonal rotation along the rank. Pure functions.

SkillZip, double smoothing (b) ([digest] in methods/skillweave.md): singular values decay fast, so the rank channels of
A and B differ by orders of magnitude and share codes badly. With any orthogonal Q, A B = (A Q)(Q^T B); Q mixes the
channels until all are of one size. It is folded into the factors, so it costs nothing at run time.
"""

from __future__ import annotations

import torch


def hadamard(n: int) -> torch.Tensor:
    """The normalised Hadamard matrix of Sylvester's construction, float64 (n, n); n is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < n:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return matrix / n**0.5


def orthogonal(n: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix, uniform over the group, float64 (n, n); the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return (q * r.diagonal().sign()).contiguous()


def rotation(rank: int, seed: int) -> torch.Tensor:
    """Q, float64 (rank, rank): the Hadamard matrix where ``rank`` is a power of two, else the Kronecker product of the
    largest Hadamard matrix that divides it with a seeded random orthogonal matrix of the odd part."""
    power = rank & -rank
    return torch.kron(hadamard(power), orthogonal(rank // power, seed))
