"""The parts of prompting and decoding that may differ between the rows of one batch: tokenizer, ends, vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

from skillweave.base.defaults import model_defaults
from skillweave.base.ends import stop_tokens
from skillweave.base.sizes import embedding_rows


@dataclass(frozen=True, eq=False)
class Voice:
    """How prompts are written for a model, and how its answers are read."""

    tokenizer: Any
    """the tokenizer, with its chat template"""
    generation: Any = None
    """a generation config; None: the model's own"""
    rows: int | None = None
    """the size of the vocabulary; None: the number of rows of the model's embedding"""

    def vocabulary(self, model: Any) -> int:
        """Return the size of the vocabulary of ``model`` with this voice."""
        return embedding_rows(model) if self.rows is None else self.rows

    def stops(self, model: Any) -> list[int]:
        """Return the ids that end an answer (:func:`~skillweave.base.ends.stop_tokens`)."""
        return stop_tokens(model, self.tokenizer, self.generation)

    def defaults(self, model: Any) -> dict[str, Any]:
        """Return the defaults of the generation config (:func:`~skillweave.base.defaults.model_defaults`)."""
        return model_defaults(model, generation=self.generation, rows=self.rows)


def padding_id(model: Any, tokenizer: Any) -> int:
    """Return an id to pad with that the model has a row for.

    The value does not matter otherwise, because padding is masked. A tokenizer's own pad token may have been added to
    the tokenizer only, so that the model has no row for it.
    """
    rows = embedding_rows(model)
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((pad for pad in candidates if pad is not None and 0 <= pad < rows), 0)


class OwnEnds(StoppingCriteria):
    """Stop each row of a batch at one of its own end tokens. Shapes: ids (B, T) -> bool (B,)."""

    def __init__(self, ends: Sequence[Sequence[int]], device: Any) -> None:
        # transformers pads finished rows if a criterion has this attribute.
        self.eos_token_id = sorted({end for own in ends for end in own})
        longest = max(map(len, ends))
        self._ends = torch.tensor([[*own, *[own[0]] * (longest - len(own))] for own in ends], device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (input_ids[:, -1:] == self._ends).any(dim=1)
