"""Which tokens of a prompt the backbone reads for a pack whose card says ``prefill: backbone``, and how they are read.

The keys and values of these tokens are the plain base's, so they are the same for every pack. The tokens with which the
chat template opens the answer, and at least the last token of the prompt, are read with the pack: the logits of the
last one give the first token of the answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skillweave.base.chat import rendered
from skillweave.base.template import has_template
from skillweave.base.tokens import tokenized
from skillweave.errors import UserError


def opening_ids(tokenizer: Any) -> list[int]:
    """Return the token ids with which the chat template opens an answer, such as those of ``<|im_start|>assistant``.

    The list is empty if there is no template, or if it writes more than an end behind the messages.
    """
    if not has_template(tokenizer):
        return []
    messages = [{"role": "user", "content": "text"}]
    try:
        before = rendered(tokenizer, messages, to_answer=False)
        opened = rendered(tokenizer, messages)
    except UserError:  # a template may refuse this conversation and take others
        return []
    if not opened.startswith(before):
        return []
    return list(tokenized(tokenizer, opened[len(before) :], add_special_tokens=False)["input_ids"])


def backbone_tokens(ids: Sequence[int], opening: Sequence[int]) -> int:
    """Return how many leading tokens of a prompt the backbone reads; ``opening`` as :func:`opening_ids` gives it.

    They are all but the opening of the answer if the prompt ends with it, else all but the last token.
    """
    opened = bool(opening) and list(ids[-len(opening) :]) == list(opening)
    return max(0, len(ids) - (len(opening) if opened else 1))


@torch.no_grad()
def read_prefix(model: Any, ids: Tensor, mask: Tensor) -> Any:
    """Return :func:`prefix_cache` without gradients. Raises :class:`UserError` if the model has no such cache."""
    cache = prefix_cache(model, ids, mask)
    if cache is None:
        raise UserError(
            "the base keeps no keys and values of a prompt, so a pack with 'prefill: backbone' cannot answer on it: "
            "zip the skill without prefill"
        )
    return cache


def prefix_cache(model: Any, ids: Tensor, mask: Tensor) -> Any:
    """Return the cache of keys and values after ``model`` has read ids (B, T); None if the model has no such cache.

    ``mask`` (B, T) pads them on the left. Gradients flow through the cache where they are enabled.
    """
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    out = model(input_ids=ids, attention_mask=mask, use_cache=True, **position_ids(model, mask), **keep)
    return getattr(out, "past_key_values", None)


def position_ids(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """Return the argument ``position_ids`` (B, T), which counts the tokens that ``mask`` (B, T) shows.

    The mapping is empty if the model does not take positions, but finds them by the mask.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
