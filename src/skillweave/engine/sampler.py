"""Choose the next token of a request by its own sampling, with random numbers of its own.

The draw is the Gumbel-max trick: the argmax of logits plus independent Gumbel noise is a draw from their softmax
(Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030 [abstract]). So the draws of a request depend on its own logits and
its own seed alone, and not on the requests that share its steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny
_SEEDS = 2**64


class RowSampler:
    """Draws the tokens of one request, one after another, with random numbers of its own.

    - ``temperature`` 0 is greedy
    - ``vocabulary``: the number of tokens that the request may write. It is also the number of random numbers for each
      token, which therefore does not depend on other requests, whose vocabulary may be larger.
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
        drawn = own / self._temperature
        if self._top_p < 1:
            drawn = in_nucleus(drawn[None], drawn.new_tensor([self._top_p]))[0]
        return int((drawn + self._gumbel(drawn)).argmax())

    def _gumbel(self, like: Tensor) -> Tensor:
        """Return independent draws (V,) from the standard Gumbel distribution: minus logarithms of waiting times."""
        waits = torch.empty_like(like).exponential_(generator=self._generator)
        return -waits.clamp_min_(_TINY).log_()


def in_nucleus(logits: Tensor, top_p: Tensor) -> Tensor:
    """Return logits (N, V) with minus infinity outside of each row's nucleus, for ``top_p`` (N,) from 0 to 1.

    The nucleus is the smallest set of most probable tokens that reach the probability ``top_p`` together; it has at
    least one token. Source: Holtzman et al. 2020, arXiv 1904.09751 [abstract].
    """
    ordered, index = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # Where top_p is 1, rounding of the sum must not remove the least probable tokens.
    beyond = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    beyond[:, 0] = False
    return logits.masked_fill(torch.zeros_like(beyond).scatter(1, index, beyond), -torch.inf)
