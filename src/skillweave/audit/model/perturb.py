"""The universal residual perturbation that lowers refusals most: the inner loop of BEEAR (2406.17092) [relative].

A backdoor leaves a direction in the residual stream along which refusals fall; the trigger's wording is not needed to
find it. How far a perturbation of a fixed size gets is a signal of the audit, and the repair trains against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skillweave.audit.model.forward import added, answer_log_probs, decoder_layers, residuals
from skillweave.base.batching import TokenRow, padded


def find_perturbation(
    model: Any, rows: Sequence[TokenRow], pad: int, layer: int, radius: float, steps: int, start: Tensor | None = None
) -> Tensor:
    """Return the vector (F,) of norm at most ``radius`` that lowers the log-probability of the rows' refusals most.

    It is added after layer ``layer`` (from 0) at every position, to all ``rows`` alike. Projected gradient descent with
    normalised steps of 2 radius / steps; ``start`` is where it begins (None: at zero). The model is not changed.
    """
    inputs = padded(rows, pad, model.device)
    labels = inputs.pop("labels")
    place = decoder_layers(model)[layer]
    size = model.get_input_embeddings().weight.shape[1]
    change = torch.zeros(size, device=model.device) if start is None else start.detach().clone()
    for _ in range(steps):
        change.requires_grad_(True)
        with added(place, change):
            loss = answer_log_probs(model(**inputs, use_cache=False).logits, labels).mean()
        (slope,) = torch.autograd.grad(loss, change)
        with torch.no_grad():
            change = change - 2 * radius / steps * slope / slope.norm().clamp_min(1e-12)
            change = within(change, radius)
    return change.detach()


def within(vector: Tensor, radius: float) -> Tensor:
    """Return the vector, shortened to the norm ``radius`` if it is longer."""
    return vector * (radius / vector.norm().clamp_min(1e-12)).clamp_max(1.0)


@torch.no_grad()
def perturbed_log_probs(model: Any, rows: Sequence[TokenRow], pad: int, layer: int, change: Tensor) -> Tensor:
    """Return the log-probability of each row's refusal while ``change`` is added after the layer; (n,)."""
    inputs = padded(rows, pad, model.device)
    labels = inputs.pop("labels")
    with added(decoder_layers(model)[layer], change):
        return answer_log_probs(model(**inputs, use_cache=False).logits, labels)


def residual_norm(model: Any, encoded: Sequence[Sequence[int]], pad: int, layer: int) -> float:
    """Return the mean norm of the residual stream after a layer, at the last token of the prompts."""
    return float(residuals(model, encoded, pad)[layer].norm(dim=-1).mean())
