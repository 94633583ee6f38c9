"""Random integer factors of one matrix."""

from __future__ import annotations

import torch

from skillweave.pack import LowRank


def random_factors(
    seed: int, out: int, inner: int, rank: int, *, largest: int = 7, smooth: torch.Tensor | None = None
) -> LowRank:
    """Factors (out, rank) and (rank, inner) whose codes are in [-largest, largest]."""
    source = torch.Generator().manual_seed(seed)
    return LowRank(
        A=torch.randint(-largest, largest + 1, (out, rank), generator=source, dtype=torch.int8),
        B=torch.randint(-largest, largest + 1, (rank, inner), generator=source, dtype=torch.int8),
        A_scale=torch.rand(out, generator=source).half(),
        B_scale=torch.rand(rank, generator=source).half(),
        smooth=smooth,
    )
