"""Directions of packs among the features of prompts, and from which cosine on a pack answers: pure functions.

N prompts, F features, P packs. Labels are int64 (N,): a pack's number, and P for the background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

NARROWEST = 1e-6
"""A feature with a smaller standard deviation counts as constant, and is not divided by it."""
_LEAST_SHRINKAGE = 0.01
"""The covariance of the background is mixed with at least this share of a round one, so that it can be divided by."""


@dataclass(frozen=True)
class Geometry:
    """The directions of P packs among F features."""

    mean: torch.Tensor
    spread: torch.Tensor
    basis: torch.Tensor
    packs: torch.Tensor
    """(P, F), of length 1"""

    @classmethod
    def of(cls, x: torch.Tensor, labels: torch.Tensor, packs: int) -> Geometry:
        """The geometry of features (N, F); labels from 0, and ``packs`` for the background."""
        background = x[labels == packs]
        mean, spread = background.mean(0), x.std(0, correction=0)
        spread = torch.where(spread > NARROWEST, spread, 1.0)
        basis = _damping((background - mean) / spread)
        own = directions((x - mean) / spread, basis)
        means = torch.stack([own[labels == pack].mean(0) for pack in range(packs)])
        return cls(mean, spread, basis, F.normalize(means, dim=-1))

    def cosines(self, x: torch.Tensor) -> torch.Tensor:
        """The cosines of features (N, F) with the packs: (N, P)."""
        return directions((x - self.mean) / self.spread, self.basis) @ self.packs.T


def directions(standard: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Standardised features (N, F), damped along the basis (R, F) and divided by their length."""
    return F.normalize(standard - (standard @ basis.T) @ basis, dim=-1)


def _damping(centred: torch.Tensor) -> torch.Tensor:
    """The basis (R, F) that makes prompts like these (N, F; mean 0) equally wide in all directions.

    There are fewer prompts than features, so Ledoit and Wolf's covariance stands for that of the prompts: (1 - a) C +
    a m I, with m the mean variance. Its inverse root is, up to a factor, I - sum of d u u^T over the eigenvectors u of
    C with eigenvalues v, where d = 1 - sqrt(a m / ((1 - a) v + a m)). The rows are sqrt(d) u.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # late: it takes a second, and answering does not need it

    level = float(centred.square().mean())
    if len(centred) < 2 or level <= NARROWEST**2:
        return torch.zeros(1, centred.shape[1])
    share = max(_LEAST_SHRINKAGE, float(ledoit_wolf_shrinkage(centred.double().numpy(), assume_centered=True)))
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    variances = lengths.square() / len(centred)
    damped = 1 - (share * level / ((1 - share) * variances + share * level)).sqrt()
    return damped.clamp_min(0).sqrt()[:, None] * axes


def enough_cosine(unseen: torch.Tensor, labels: torch.Tensor, stray: float, miss: float) -> float:
    """The cosine from which on a pack answers, from cross-fitted cosines (N, P).

    At most the share ``stray`` of the background reaches it, and at most the share ``stray`` of the packs' prompts
    reaches it with a pack that is not theirs. But at most the share ``miss`` of the packs' prompts may fall below it
    with their own pack, and this comes first. Shares are counted with the n + 1 of conformal prediction.
    """
    packs = unseen.shape[1]
    own = labels < packs
    others = unseen[own].scatter(1, labels[own][:, None], -1.0)
    low = unseen[own].gather(1, labels[own][:, None])[:, 0].sort().values
    highs = [unseen[~own].amax(-1), *([others.amax(-1)] if packs > 1 else [])]
    least = max(_exceeded_by(high, stray) for high in highs)
    most = float(low[max(0, math.floor(miss * (len(low) + 1)) - 1)])
    return max(0.0, min(least, most))


def _exceeded_by(values: torch.Tensor, share: float) -> float:
    """The value that less than this share of the values exceed; the largest one if there are few."""
    above = math.floor(share * (len(values) + 1))
    return float(values.sort().values[len(values) - max(1, above)])
