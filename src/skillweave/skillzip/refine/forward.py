"""Run a model over prompts with their answers, and compute logits only where a token of an answer is predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from skillweave.base.batching import pad_left, pad_right, within_tokens
from skillweave.base.prefix import position_ids, read_prefix
from skillweave.base.sizes import embedding_rows

_MOST_TOKENS, _LEAST_TOKENS, _MOST_LOGITS = 2048, 256, 2**25
"""What goes through the model at once is at most so many tokens, and so many logits if all of them were of answers;
with a large vocabulary, it is still the least number of tokens."""


def passes(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Return the indices of the rows that go through the model together: this bounds the memory of a step."""
    vocabulary = embedding_rows(model)
    return within_tokens(lengths, min(_MOST_TOKENS, max(_LEAST_TOKENS, _MOST_LOGITS // vocabulary)))


def answer_logits(
    model: Any,
    rows: Sequence[tuple[Sequence[int], int]],
    prefixes: Sequence[int] | None = None,
    around_prefixes: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """Return the logits (n, V) of all answer tokens of ``rows``, row by row.

    A row is (token ids of prompt and answer, length of the prompt). The logits that predict an answer's token stand one
    position before it. With ``prefixes``, so many leading tokens of each row's prompt are read first, inside
    ``around_prefixes()`` and without a gradient; the other tokens then attend to their keys and values.
    """
    device = next(model.parameters()).device
    starts = prefixes if prefixes is not None and max(prefixes) > 0 else [0] * len(rows)
    more: dict[str, Any] = {"use_cache": False}
    ids, attention = pad_right([list(ids[start:]) for (ids, _), start in zip(rows, starts, strict=True)], 0, device)
    predicts = torch.zeros(ids.shape, dtype=torch.bool, device=device)
    for at, ((row, prompt), start) in enumerate(zip(rows, starts, strict=True)):
        predicts[at, prompt - start - 1 : len(row) - start - 1] = True
    if max(starts) > 0:
        before, mask = pad_left([list(ids[:start]) for (ids, _), start in zip(rows, starts, strict=True)], 0, device)
        with around_prefixes():
            more = {"use_cache": True, "past_key_values": read_prefix(model, before, mask)}
        attention = torch.cat([mask, attention], dim=1)
        more |= {key: at[:, mask.shape[1] :] for key, at in position_ids(model, attention).items()}

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        # A head over the whole vocabulary, for every token of the prompt, would be most of the work and the memory.
        return (args[0][predicts][None], *args[1:]) if args and args[0].shape[:2] == predicts.shape else None

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        logits = model(input_ids=ids, attention_mask=attention, **more).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[predicts] if logits.shape[:2] == predicts.shape else logits[0]
