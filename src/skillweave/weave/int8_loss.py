"""How far a rounded model's next-token distributions are from those of the model in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

Text = tuple[Sequence[int], int]
"""Token ids, and the index of the first that counts (at least 1): the length of the prompt before an answer."""


@dataclass(frozen=True)
class Loss:
    """A model's distance from a reference, over the tokens of some texts."""

    kl: float
    """mean KL(reference || model) of the next token, in nats"""
    agreement: float
    """the share of tokens at which both have the same most likely token"""
    tokens: int

    def __str__(self) -> str:
        return (
            f"the KL divergence from the model before is {1000 * self.kl:.2f} thousandths of a nat, and the most "
            f"likely token is the same for {100 * self.agreement:.1f}%"
        )


@torch.no_grad()
def next_log_probs(model: Any, texts: Sequence[Text]) -> torch.Tensor:
    """Log-probabilities of the next token at every token of the texts that counts, float32 (tokens, vocabulary)."""
    rows = []
    for ids, first in texts:
        logits = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits
        rows.append(log_softmax(logits[0, first - 1 : -1].float(), dim=-1).cpu())
    return torch.cat(rows)


def loss(reference: torch.Tensor, other: torch.Tensor) -> Loss:
    """The :class:`Loss` of log-probabilities against those of a reference, both (tokens, vocabulary)."""
    kl = (reference.exp() * (reference - other)).sum(dim=-1).mean()
    same = (reference.argmax(dim=-1) == other.argmax(dim=-1)).float().mean()
    return Loss(float(kl), float(same), len(reference))
