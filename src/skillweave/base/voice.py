"""How a model is spoken to, and how its answer is read: what may differ from row to row of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

from skillweave.base.defaults import model_defaults
from skillweave.base.ends import stop_tokens


@dataclass(frozen=True, eq=False)
class Voice:
    """A tokenizer with its chat template, a generation config (None: the model's own), and the number of token rows
    (None: as many as the model's embedding has)."""

    tokenizer: Any
    generation: Any = None
    rows: int | None = None

    def stops(self, model: Any) -> list[int]:
        """The ids that end an answer (:func:`~skillweave.base.ends.stop_tokens`)."""
        return stop_tokens(model, self.tokenizer, self.generation)

    def defaults(self, model: Any) -> dict[str, Any]:
        """What of the generation config chooses the tokens (:func:`~skillweave.base.defaults.model_defaults`)."""
        return model_defaults(model, generation=self.generation)


def padding_id(model: Any, tokenizer: Any) -> int:
    """An id to pad with, which the model has a row for. Padding is masked, so which one it is does not matter.

    A tokenizer may name a pad token that was added to it and never to the model.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((pad for pad in named if pad is not None and 0 <= pad < rows), 0)


class OwnEnds(StoppingCriteria):
    """Each row of a batch ends at one of its own end tokens. Shapes: ids (B, T) -> bool (B,)."""

    def __init__(self, ends: Sequence[Sequence[int]], device: Any) -> None:
        # transformers pads the rows that ended where a criterion has this attribute.
        self.eos_token_id = sorted({end for own in ends for end in own})
        longest = max(map(len, ends))
        self._ends = torch.tensor([[*own, *[own[0]] * (longest - len(own))] for own in ends], device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (input_ids[:, -1:] == self._ends).any(dim=1)
