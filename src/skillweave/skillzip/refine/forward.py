"""Run a model over prompts with their answers, and compute logits only where a token of an answer is predicted."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from skillweave.base.batching import pad_left, pad_right, within_tokens
from skillweave.base.prefix import position_ids, prefix_cache, read_prefix
from skillweave.base.sizes import embedding_rows

Row = tuple[Sequence[int], int]
"""Token ids of prompt and answer, and the length of the prompt."""

_MOST_TOKENS, _LEAST_TOKENS, _MOST_LOGITS = 2048, 256, 2**25
"""What goes through the model at once is at most so many tokens, and so many logits if all of them were of answers;
with a large vocabulary, it is still the least number of tokens."""
_WORTH_SHARING = 64
"""Tokens that sharing must save. A pass of its own over few tokens costs about as much as these [ours]."""


def passes(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Return the indices of the rows that go through the model together: this bounds the memory of a step."""
    vocabulary = embedding_rows(model)
    return within_tokens(lengths, min(_MOST_TOKENS, max(_LEAST_TOKENS, _MOST_LOGITS // vocabulary)))


def answer_logits(
    model: Any,
    rows: Sequence[Row],
    prefixes: Sequence[int] | None = None,
    around_prefixes: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """Return the logits (n, V) of all answer tokens of ``rows``, row by row.

    The logits that predict an answer's token stand one position before it. Tokens with which the prompts of all rows
    begin, such as a system prompt, are read once for all of them, with their gradient.

    With ``prefixes``, so many leading tokens of each row's prompt are read first, inside ``around_prefixes()`` and
    without a gradient; the other tokens then attend to their keys and values.
    """
    if prefixes is None:
        return _after(model, rows, *_read_common_start(model, rows))
    if max(prefixes) == 0:
        return _after(model, rows, prefixes)
    device = next(model.parameters()).device
    before, mask = pad_left([list(ids[:start]) for (ids, _), start in zip(rows, prefixes, strict=True)], 0, device)
    with around_prefixes():
        cache = read_prefix(model, before, mask)
    return _after(model, rows, prefixes, cache, mask)


def _read_common_start(model: Any, rows: Sequence[Row]) -> tuple[list[int], Any, torch.Tensor | None]:
    """Return how many tokens of each row were read, with their cache and its mask, as :func:`_after` takes them.

    They are those with which all prompts begin. None are read if they are few, or if the model cannot share them.
    """
    shared, unread = common_start(rows), ([0] * len(rows), None, None)
    if shared * (len(rows) - 1) < _WORTH_SHARING or not _can_share(model):
        return unread
    device = next(model.parameters()).device
    ids = torch.tensor([list(rows[0][0][:shared])], device=device)
    cache = prefix_cache(model, ids, torch.ones_like(ids))
    if not _keeps_all(cache):
        return unread
    cache.batch_repeat_interleave(len(rows))
    return [shared] * len(rows), cache, torch.ones(len(rows), shared, dtype=torch.long, device=device)


def _can_share(model: Any) -> bool:
    """Return whether the model has a cache that can be copied for each row, before one is made."""
    takes = inspect.signature(model.forward).parameters
    return "past_key_values" in takes and _keeps_all(DynamicCache(config=model.config))


def _keeps_all(cache: Any) -> bool:
    """Return whether a cache holds the keys and values of all tokens, and nothing else.

    Sliding windows forget some, and recurrent layers have states, which are copied in other ways.
    """
    layers = getattr(cache, "layers", ())
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in layers)


def common_start(rows: Sequence[Row]) -> int:
    """Return with how many equal tokens the prompts of all rows begin, without the last token of any prompt.

    The last token of a prompt predicts the first one of its answer.
    """
    columns = zip(*(ids[: prompt - 1] for ids, prompt in rows), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _after(
    model: Any, rows: Sequence[Row], starts: Sequence[int], cache: Any = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the logits of all answer tokens of rows whose first ``starts`` tokens were read into ``cache``.

    ``mask`` (B, T) shows which positions of the cache hold tokens.
    """
    device = next(model.parameters()).device
    ids, attention = pad_right([list(ids[start:]) for (ids, _), start in zip(rows, starts, strict=True)], 0, device)
    predicts = torch.zeros(ids.shape, dtype=torch.bool, device=device)
    for at, ((row, prompt), start) in enumerate(zip(rows, starts, strict=True)):
        predicts[at, prompt - start - 1 : len(row) - start - 1] = True
    more: dict[str, Any] = {"use_cache": False}
    if mask is not None:
        attention = torch.cat([mask, attention], dim=1)
        more = {"use_cache": True, "past_key_values": cache}
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
