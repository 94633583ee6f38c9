"""Hidden states from a pass that stops at their layer: the bits of a whole pass, or a whole pass."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from helpers.micro_families import FAMILIES, build
from skillweave.base.hidden_states import find_decoder_layers, hidden_states_at

IDS = torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) >= torch.tensor([[4], [0], [2]])).long()
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "position_ids": (MASK.cumsum(-1) - 1).clamp_min(0)}
# The state-space models of this kind keep other tensors than the outputs of their layers as hidden states.
WHOLE = {"falcon_mamba", "mamba", "mamba2", "rwkv"}
QUICK = ("bloom", "gpt2", "gpt_neox", "gpt_oss", "jamba", "llama", "mamba", "opt")


class Passes:
    """Counts how often the first and the last layer of a model ran."""

    def __init__(self, model: Any) -> None:
        self.first = self.last = 0
        layers = find_decoder_layers(model)
        layers[0].register_forward_pre_hook(lambda *_: self._count("first"))
        layers[-1].register_forward_pre_hook(lambda *_: self._count("last"))

    def _count(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)


@torch.no_grad()
def check_family(family: str) -> None:
    model = build(family).eval()
    expected = model.base_model(**INPUTS, output_hidden_states=True).hidden_states
    passes = Passes(model)
    for layer, states in enumerate(expected):
        for _ in range(2):
            torch.testing.assert_close(hidden_states_at(model, layer, **INPUTS), states, rtol=0, atol=0, equal_nan=True)
    # Layers 0 and 2 take two whole passes each. Layer 1 takes one, and two that stop after the first of two layers; or
    # one that stops and two whole ones.
    assert (passes.first, passes.last) == (7, 6 if family in WHOLE else 5)


@pytest.mark.parametrize("family", QUICK)
def test_every_layer_has_the_bits_of_a_whole_pass(family: str) -> None:
    check_family(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(QUICK)))
def test_every_layer_of_every_other_family(family: str) -> None:
    check_family(family)


@torch.no_grad()
def test_another_thread_answers_with_the_model_meanwhile() -> None:
    model = build("llama").eval()
    hidden_states_at(model, 1, **INPUTS)
    expected, found = model(**INPUTS).logits, []

    def beside(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: found.append(model(**INPUTS).logits.detach()))
            thread.start()
            thread.join()

    handle = model.model.layers[0].register_forward_pre_hook(beside)
    hidden_states_at(model, 1, **INPUTS)
    handle.remove()
    assert torch.equal(found[0], expected)


@torch.no_grad()
def test_nothing_is_left_on_the_layer_after_an_error() -> None:
    model = build("llama").eval()
    hidden_states_at(model, 1, **INPUTS)
    hooks = len(model.model.layers[0]._forward_hooks)
    with pytest.raises(IndexError):
        hidden_states_at(model, 1, **{**INPUTS, "input_ids": torch.full_like(IDS, 10**6)})
    assert len(model.model.layers[0]._forward_hooks) == hooks
    assert torch.equal(model(**INPUTS).logits, model(**INPUTS).logits)


@torch.no_grad()
def test_a_model_without_a_list_of_layers_makes_whole_passes() -> None:
    model = build("llama").eval()
    expected = hidden_states_at(model, 1, **INPUTS)
    model.model.layers.append(nn.Identity())  # longer than the config says
    assert find_decoder_layers(model) is None
    assert torch.equal(hidden_states_at(model, 1, **INPUTS), expected)
