"""Attention of continuous batching: the sequences of a step lie side by side in one row, each with keys of its own."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from skillweave.engine.compiled_attention import DecodingStep, decoded, takes

ATTENTION = "skillweave_paged"
"""The name of :func:`paged_attention` among the attention functions of transformers."""


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cache: PagedAttentionCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of packed sequences (1, heads, T, d), each with its own keys; (1, T, heads, d) is returned.

    Without a paged cache it is ``sdpa`` of transformers. In a step that only decodes, the library names the pages of
    each sequence, and all sequences are computed at once; else they are computed one by one.
    """
    if cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # A model may multiply in float32 although its weights, and so the cache, are in bfloat16.
    key, value = key.to(cache.dtype), value.to(cache.dtype)
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    if kwargs.get("block_table") is not None:
        return _decoded(query, key, value, scaling, **kwargs), None
    return _packed(query, key, value, scaling, kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist()), None


def _decoded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    *,
    block_table: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seq_lens_k: Tensor,
    **_: Any,
) -> Tensor:
    """One query for each sequence, with the names that the library gives."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    step = DecodingStep(query, key, value, scaling, (k_cache, v_cache), block_table, cu_seq_lens_k)
    return decoded(step) if takes(step) else decoded_with_torch(step)


def decoded_with_torch(step: DecodingStep) -> Tensor:
    """The same as :func:`decoded`, by gathering and padding the pages of all sequences."""
    query, caches, table = step.query, step.caches, step.table
    page = caches[0].shape[1]
    lengths = step.ends.diff().long()
    last = lengths - 1
    rows = torch.arange(len(lengths), device=query.device)
    at = table[rows, last // page].long(), last % page
    for cache, new in zip(caches, (step.key, step.value), strict=True):
        cache[at] = new[0].transpose(0, 1)
    pages = table[:, : math.ceil(int(lengths.max()) / page)].long().clamp_min_(0)
    keys, values = (cache[pages].flatten(1, 2).transpose(1, 2) for cache in caches)
    seen = torch.arange(keys.shape[2], device=query.device) < lengths[:, None]
    # (1, heads, B, d) -> (B, heads, 1, d), and back to (1, B, heads, d)
    made = _attend(query[0].transpose(0, 1)[:, :, None], keys, values, step.scaling, mask=seen[:, None, None])
    return made[:, :, 0][None]


def _packed(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, queries: list[int], keys: list[int]
) -> Tensor:
    """Each sequence with its own keys; ``queries`` and ``keys`` are the places where sequences begin and end."""
    made = torch.empty_like(query)
    for (q0, q1), (k0, k1) in zip(_spans(queries), _spans(keys), strict=True):
        own, past = q1 - q0, k1 - k0 - (q1 - q0)
        mask = None
        if past and own > 1:
            mask = torch.ones(own, own + past, dtype=torch.bool, device=query.device).tril_(past)
        made[:, :, q0:q1] = _attend(
            query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1], scaling, mask=mask, causal=own > 1 and not past
        )
    return made.transpose(1, 2).contiguous()


def _spans(ends: list[int]) -> list[tuple[int, int]]:
    return [(begin, end) for begin, end in pairwise(ends) if end > begin]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    *,
    mask: Tensor | None,
    causal: bool = False,
) -> Tensor:
    """Attention of queries (B, heads, q, d) with keys and values (B, key heads, k, d); several heads may share keys."""
    batch, heads, count, size = query.shape
    grouped = heads != key.shape[1]
    if grouped and count == 1:
        # The heads that share keys become queries of one head. In bfloat16 this takes a fifth of the time.
        packed = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
        return _attend(packed, key, value, scaling, mask=mask).view(batch, heads, 1, size)
    return scaled_dot_product_attention(
        query,
        key.to(query.dtype),
        value.to(query.dtype),
        attn_mask=mask,
        is_causal=causal,
        scale=scaling,
        enable_gqa=grouped,
    )


AttentionInterface.register(ATTENTION, paged_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
