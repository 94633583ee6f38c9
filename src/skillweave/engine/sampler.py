"""Choose the next token of each row of a batch by the row's own sampling, with random numbers of its own.

The draw is the Gumbel-max trick: the argmax of logits plus independent Gumbel noise is a draw from their softmax
(Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030 [abstract]). So a batch of greedy and of sampled rows is decoded
greedily as a whole, and the draws of a row depend on its own logits and its own seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

_TINY = torch.finfo(torch.float32).tiny
_SEEDS = 2**64


@dataclass(frozen=True)
class RowSampling:
    """How the tokens of one row are chosen; ``temperature`` 0 is greedy.

    ``vocabulary`` is the number of tokens that the row may write. It is also the number of draws for each step, which
    therefore does not depend on rows of the batch that have a larger vocabulary.
    """

    temperature: float
    top_p: float
    seed: int
    vocabulary: int


class RowSampler(LogitsProcessor):
    """Prepares the scores of a batch so that greedy decoding draws each row by its own sampling.

    - Scores are float32 (B, V). Those of a greedy row stay as they are.
    - ``bad`` maps rows with NaN or infinity to that value. Their scores become 0, and the other rows stay as they are.
    """

    def __init__(self, rows: Sequence[RowSampling], device: Any) -> None:
        self._rows = rows
        self._sampled = [index for index, row in enumerate(rows) if row.temperature > 0]
        self._generators = {
            index: torch.Generator(device).manual_seed(rows[index].seed % _SEEDS) for index in self._sampled
        }
        self.bad: dict[int, float] = {}

    def drop(self, row: int) -> None:
        """Draw no more for a row that has ended."""
        if row in self._generators:
            self._sampled.remove(row)
            del self._generators[row]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        top = scores.amax(dim=-1)  # NaN if one of the scores is
        bad = ~top.isfinite()
        self.bad = {}
        if bool(bad.any()):
            self.bad = {row: float(top[row]) for row in bad.nonzero()[:, 0].tolist()}
            scores = scores.masked_fill(bad[:, None], 0.0)
        if not self._sampled:
            return scores
        where = torch.tensor(self._sampled, device=scores.device)
        rows = [self._rows[row] for row in self._sampled]
        temperature = scores.new_tensor([row.temperature for row in rows])
        drawn = scores[where] / temperature[:, None]
        if any(row.top_p < 1 for row in rows):
            drawn = in_nucleus(drawn, scores.new_tensor([row.top_p for row in rows]))
        return scores.index_copy(0, where, drawn + self._gumbel(drawn))

    def _gumbel(self, like: Tensor) -> Tensor:
        """Return independent draws (N, V) from the standard Gumbel distribution, each row by its own generator.

        They are minus infinity beyond a row's vocabulary. A draw is minus the logarithm of an exponential one.
        """
        waits = torch.full_like(like, torch.inf)
        for wait, index in zip(waits, self._sampled, strict=True):
            wait[: self._rows[index].vocabulary].exponential_(generator=self._generators[index])
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
