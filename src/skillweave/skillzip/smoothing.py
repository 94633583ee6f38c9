"""Smooth the input channels of a layer. Pure functions.

This is part (a) of SkillZip's double smoothing ([digest], see docs/explanation/skillzip.md), after SmoothQuant (arXiv
2211.10438, eq. 4). A few input channels may be far larger than the rest and use up the eight bits of every token.
Dividing x_j by s_j and multiplying column j of B by s_j changes no product, and moves the difficulty into the weights.
"""

from __future__ import annotations

import torch


def smoothing_scale(x_max: torch.Tensor, b_max: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s_j = max|x_j|^alpha / max|B_:j|^(1 - alpha), float16 (in,), scaled to a geometric mean of 1.

    * ``x_max`` (in,) are the largest inputs, ``b_max`` (in,) the largest weights over all matrices with this input.
    * Channels that are never used, by the input or by the weights, get 1.
    * Values are clamped to [1/1024, 1024], which float16 can represent.
    """
    used = (x_max > 0) & (b_max > 0)
    x_log = torch.where(used, x_max, 1.0).double().log()
    b_log = torch.where(used, b_max, 1.0).double().log()
    log = alpha * x_log - (1 - alpha) * b_log
    log = log - log[used].mean() if bool(used.any()) else log
    bound = torch.log(torch.tensor(1024.0, dtype=torch.float64))
    return torch.where(used, log.clamp(-bound, bound).exp(), 1.0).half()
