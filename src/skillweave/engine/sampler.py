"""Choose the next token of a request by its own sampling, with random numbers of its own.

A draw turns one uniform number into a token by the cumulated probabilities (inversion; Devroye 1986, chapter II). So
the draws of a request depend on its own logits and its own seed alone, and not on the requests that share its steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SEEDS = 2**64


class RowSampler:
    """Draws the tokens of one request, one after another, with random numbers of its own.

    - ``temperature`` 0 is greedy
    - ``vocabulary``: the number of tokens that the request may write; other requests of a step may have more
    """

    def __init__(self, *, temperature: float, top_p: float, seed: int, vocabulary: int, device: Any) -> None:
        self._temperature, self._top_p, self._vocabulary = temperature, top_p, vocabulary
        self._generator = torch.Generator(device).manual_seed(seed % _SEEDS) if temperature > 0 else None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self._generator is None

    def draw(self, scores: Tensor) -> int:
        """Return the next token. ``scores`` are float32 (V,); tokens with minus infinity are never drawn."""
        own = scores[: self._vocabulary]
        if self._generator is None:
            return int(own.argmax())
        # The largest logit is taken away first: a small temperature would make it infinite.
        probabilities = ((own - own.max()) / self._temperature).softmax(dim=-1)
        uniform = torch.rand((), generator=self._generator, dtype=torch.float64, device=own.device)
        if self._top_p >= 1:
            return _at(probabilities, uniform)
        index = nucleus(probabilities, self._top_p)
        return int(index[_at(probabilities[index], uniform)])


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return the tokens of the nucleus of ``probabilities`` (V,), the most probable first.

    The nucleus is the smallest set of most probable tokens that reach the probability ``top_p``, from 0 to 1, together;
    it has at least one token. Source: Holtzman et al. 2020, arXiv 1904.09751 [abstract].
    """
    # All tokens below this have at most 1 - top_p together, so none of them is in the nucleus. Most of a vocabulary is,
    # and need not be sorted. A little less, because the probabilities are rounded.
    least = 0.999 * (1 - top_p) / probabilities.shape[0]
    among = (probabilities > least).nonzero()[:, 0]
    ordered, order = probabilities[among].sort(descending=True, stable=True)
    before = ordered.cumsum(dim=0, dtype=torch.float64) - ordered
    count = max(1, int((before < top_p).sum()))
    return among[order[:count]]


def _at(weights: Tensor, uniform: Tensor) -> int:
    """Return the index at which the sum of ``weights`` (n,) passes the share ``uniform``, from 0 to below 1, of all."""
    reached = weights.cumsum(dim=0, dtype=torch.float64)
    # Rounding could put it beyond the last index that has a weight.
    last = torch.searchsorted(reached, reached[-1:])[0]
    return int(torch.searchsorted(reached, (uniform * reached[-1])[None], right=True)[0].minimum(last))
