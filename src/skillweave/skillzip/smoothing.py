"""Smoothing of the input channels. Pure functions.

SkillZip, double smoothing (a) ([digest] in methods/skillweave.md), after SmoothQuant (arXiv 2211.10438, eq. 4): a few
input channels are far larger than the rest and spend the eight bits of every token. Dividing x_j by s_j and
multiplying column j of B by it changes no product, and moves that difficulty into the weights.
"""

from __future__ import annotations

import torch


def smoothing_scale(x_max: torch.Tensor, b_max: torch.Tensor, alpha: float) -> torch.Tensor:
    """s_j = max|x_j|^alpha / max|B_:j|^(1 - alpha), float16 (in,), with a geometric mean of 1.

    ``x_max`` and ``b_max`` are (in,); the latter is over all the matrices that share the input. Channels that are never
    used, on either side, get 1. The values are held within [1/1024, 1024], so that float16 can say them.
    """
    used = (x_max > 0) & (b_max > 0)
    x_log = torch.where(used, x_max, 1.0).double().log()
    b_log = torch.where(used, b_max, 1.0).double().log()
    log = alpha * x_log - (1 - alpha) * b_log
    log = log - log[used].mean() if bool(used.any()) else log
    bound = torch.log(torch.tensor(1024.0, dtype=torch.float64))
    return torch.where(used, log.clamp(-bound, bound).exp(), 1.0).half()
