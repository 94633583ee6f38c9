"""The hidden states of one layer, from a forward pass that stops at that layer. Later layers cost nothing."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from skillweave.base.sizes import layer_count

_PROVEN: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()
"""For each model and layer: whether a pass that stops there gave the same hidden states as a whole one."""


class _LayerReached(Exception):
    """Ends a forward pass; it carries the output of the layer."""

    def __init__(self, output: Any) -> None:
        self.output = output


def find_decoder_layers(model: Any) -> nn.ModuleList | None:
    """Return the first list that is as long as the model has layers, or None."""
    count = layer_count(model)
    lists = (one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == count)
    return next(lists, None)


def hidden_states_at(model: Any, layer: int, **inputs: Any) -> Tensor:
    """Return the hidden states (B, T, F) that ``model.base_model(**inputs)`` has at ``layer``.

    ``layer`` counts as in transformers: 0 is the embedding, k the output of the k-th decoder layer, and the last one
    the output of the final norm. The pass stops at the layer, unless it is the first or the last one. The first call
    for a model and a layer makes a whole pass, too. If the two differ in any bit, whole passes are made from then on:
    some architectures put something else than a layer's output among their hidden states.
    """
    proven = _PROVEN.setdefault(model, {})
    if proven.get(layer):
        states = _stopped(model, layer, inputs)
        if states is not None:
            return states
    whole: Tensor = model.base_model(**inputs, output_hidden_states=True).hidden_states[layer]
    if layer not in proven:
        states = _stopped(model, layer, inputs)
        proven[layer] = states is not None and _same_bits(states, whole)
    return whole


def _stopped(model: Any, layer: int, inputs: dict[str, Any]) -> Tensor | None:
    """Return the output of the ``layer``-th decoder layer, from a pass that stops there.

    Return None for the first and the last layer, and for a model whose pass does not run through such a layer.
    """
    layers = find_decoder_layers(model)
    if layers is None or not 0 < layer < len(layers):
        return None
    thread = threading.get_ident()

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        # Another thread may answer with the same model meanwhile.
        if threading.get_ident() == thread:
            raise _LayerReached(output)

    handle = layers[layer - 1].register_forward_hook(stop)
    try:
        model.base_model(**inputs)
    except _LayerReached as reached:
        output = reached.output[0] if isinstance(reached.output, tuple | list) else reached.output
        return output if isinstance(output, Tensor) else None
    finally:
        handle.remove()
    return None


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether both have the same shape and values; NaN, which padding may hold, equals NaN."""
    return one.shape == other.shape and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())
