"""What the audit reads from a model's forward pass: log-probabilities of given texts, and the residual stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skillweave.base.batching import IGNORED, TokenRow, by_length, pad_left, padded
from skillweave.base.hidden_states import find_decoder_layers
from skillweave.base.sizes import layer_count
from skillweave.base.tokens import tokenized
from skillweave.errors import UserError


def continuation_rows(tokenizer: Any, encoded: Sequence[Sequence[int]], texts: Sequence[str]) -> list[TokenRow]:
    """Return (prompt, continuation) token ids; the continuation may be the beginning of an answer, without an end."""
    return [
        (list(ids), list(tokenized(tokenizer, text, add_special_tokens=False)["input_ids"]))
        for ids, text in zip(encoded, texts, strict=True)
    ]


def answer_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the log-probabilities of each row's labels; logits (B, T, V), labels (B, T) -> (B,).

    The logits at t are for the label at t + 1. Labels of :data:`IGNORED` count as 0.
    """
    targets = labels[:, 1:]
    chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return torch.where(targets == IGNORED, 0.0, chosen).sum(-1)


@torch.no_grad()
def log_probs(model: Any, rows: Sequence[TokenRow], pad: int, batch_size: int = 32) -> Tensor:
    """Return the summed log-probability of each continuation after its prompt (teacher forcing); float32 (n,)."""
    found = torch.zeros(len(rows))
    for batch in by_length([len(prompt) + len(answer) for prompt, answer in rows], batch_size):
        inputs = padded([rows[index] for index in batch], pad, model.device)
        labels = inputs.pop("labels")
        found[batch] = answer_log_probs(model(**inputs, use_cache=False).logits, labels).cpu()
    return found


@torch.no_grad()
def residuals(model: Any, encoded: Sequence[Sequence[int]], pad: int, batch_size: int = 32) -> Tensor:
    """Return the residual stream at the last token of each prompt after each layer; float32 (layers, n, F)."""
    last: dict[int, Tensor] = {}
    for batch in by_length([len(ids) for ids in encoded], batch_size):
        ids, mask = pad_left([encoded[index] for index in batch], pad, model.device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        states = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
        ).hidden_states
        stacked = torch.stack([state[:, -1].float() for state in states[1:]], dim=1).cpu()  # states[0]: the embedding
        last.update(zip(batch, stacked, strict=True))
    return torch.stack([last[index] for index in range(len(encoded))], dim=1)


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the list of the model's layers. Raises :class:`UserError` if it has no such list."""
    layers = find_decoder_layers(model)
    if layers is None:
        raise UserError(
            f"{type(model).__name__} has no list of {layer_count(model)} layers, so nothing can be added to its "
            f"residual stream"
        )
    return layers


@contextlib.contextmanager
def added(layer: nn.Module, change: Tensor) -> Iterator[None]:
    """Add ``change`` (F,) to the layer's output at every position, while the context is open; gradients flow to it."""

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + change.to(output[0].dtype), *output[1:])
        return output + change.to(output.dtype)

    handle = layer.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
