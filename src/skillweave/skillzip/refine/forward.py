"""Run a model over prompts with their answers, and compute logits only where a token of an answer is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from skillweave.base.batching import pad_right, within_tokens

_MOST_TOKENS, _LEAST_TOKENS, _MOST_LOGITS = 2048, 256, 2**25
"""What goes through the model at once is at most so many tokens, and so many logits if all of them were of answers;
with a large vocabulary, it is still the least number of tokens."""


def passes(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Return the indices of the rows that go through the model together: this bounds the memory of a step."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return within_tokens(lengths, min(_MOST_TOKENS, max(_LEAST_TOKENS, _MOST_LOGITS // vocabulary)))


def answer_logits(model: Any, rows: Sequence[tuple[Sequence[int], int]]) -> torch.Tensor:
    """Return the logits (n, V) of all answer tokens of ``rows``, row by row.

    A row is (token ids of prompt and answer, length of the prompt). The logits that predict an answer's token stand one
    position before it.
    """
    device = next(model.parameters()).device
    ids, attention = pad_right([list(ids) for ids, _ in rows], 0, device)
    predicts = torch.zeros(ids.shape, dtype=torch.bool, device=device)
    for at, (row, prompt) in enumerate(rows):
        predicts[at, prompt - 1 : len(row) - 1] = True

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        # A head over the whole vocabulary, for every token of the prompt, would be most of the work and the memory.
        return (args[0][predicts][None], *args[1:]) if args and args[0].shape[:2] == predicts.shape else None

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[predicts] if logits.shape[:2] == predicts.shape else logits[0]
