"""Frozen neurons are the same to the bit, whatever the optimiser does, in full and under adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.unlearning import LORA, NEURONS, parts, tiny
from skillweave.errors import UserError
from skillweave.methods.cku.neurons.freeze import FrozenNeurons, choose_frozen
from skillweave.methods.cku.neurons.mlp import find_mlps
from skillweave.methods.cku.neurons.scorers import useful_neurons

KINDS = ["llama", "gpt2", "phi3"]
FROZEN = {0: [0, 3, 11], 1: [5, 6]}
MASKS = {
    layer: torch.zeros(NEURONS, dtype=torch.bool).index_fill(0, torch.tensor(neurons), True)
    for layer, neurons in FROZEN.items()
}


def loss_of(model, seed: int) -> torch.Tensor:
    ids = torch.randint(3, 50, (4, 9), generator=torch.Generator().manual_seed(seed))
    return model(input_ids=ids, labels=ids).loss


def copy_of(weights) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights}


def train(model, optimizer, steps: int, frozen: FrozenNeurons | None = None) -> None:
    for seed in range(steps):
        loss_of(model, seed).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if frozen is not None:
            frozen.on_optimizer_step(None, None, None)
        optimizer.zero_grad()


def assert_only_the_frozen_stayed(kind, before, after, *, biases: bool = True):
    for layer in FROZEN:
        for neuron in range(NEURONS):
            pairs = zip(parts(kind, before, layer, neuron), parts(kind, after, layer, neuron), strict=True)
            for part, (old, new) in enumerate(pairs):
                stays = neuron in FROZEN[layer] or (old.dim() == 0 and not biases)
                assert torch.equal(old, new) == stays, (layer, neuron, part)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.3),
        lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=0.3),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-2, weight_decay=0.3),
    ],
    ids=["adamw", "sgd", "adam"],
)
def test_frozen_neurons_keep_their_bits_under_weight_decay_and_older_momentum(kind, make):
    model = tiny(kind)
    optimizer = make(model.parameters())
    train(model, optimizer, 2)  # what the optimiser remembers from now on pulls at the frozen ones too
    before = copy_of(model.named_parameters())
    train(model, optimizer, 3, FrozenNeurons(model, find_mlps(model), MASKS))
    after = copy_of(model.named_parameters())
    assert_only_the_frozen_stayed(kind, before, after)
    others = [name for name in before if "mlp" not in name]
    assert all(not torch.equal(before[name], after[name]) for name in others)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_leave_frozen_neurons_alone_once_merged(kind):
    model = tiny(kind)
    mlps, before = find_mlps(model), copy_of(model.named_parameters())
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=LORA[kind]))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.3)
    train(adapted, optimizer, 2)  # B is no longer zero: an adapter that was trained before, with its momentum
    train(adapted, optimizer, 4, FrozenNeurons(adapted, mlps, MASKS))
    after = copy_of(adapted.merge_and_unload().named_parameters())
    assert_only_the_frozen_stayed(kind, before, after, biases=False)
    assert all(torch.equal(before[name], after[name]) for name in before if "mlp" not in name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_that_is_clipped_is_that_of_the_live_gradients(kind):
    plain, masked = tiny(kind), tiny(kind)
    FrozenNeurons(masked, find_mlps(masked), MASKS)
    for model in (plain, masked):
        loss_of(model, 0).backward()
    live = {name: parameter.grad.clone() for name, parameter in plain.named_parameters()}
    for layer, neurons in FROZEN.items():
        for neuron in neurons:
            for part in parts(kind, live, layer, neuron):
                part.zero_()
    length = sum(float(grad.double().square().sum()) for grad in live.values()) ** 0.5
    assert float(torch.nn.utils.clip_grad_norm_(masked.parameters(), length / 4)) == pytest.approx(length, rel=1e-5)
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(parameter.grad, live[name] / 4, rtol=1e-4, atol=1e-8)


def test_gradients_of_several_micro_batches_are_cleared_alike():
    model = tiny("llama")
    FrozenNeurons(model, find_mlps(model), MASKS)
    for seed in range(3):
        loss_of(model, seed).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    for layer, neurons in FROZEN.items():
        for neuron in range(NEURONS):
            assert all(part.any() != (neuron in neurons) for part in parts("llama", grads, layer, neuron))


def test_what_is_not_trained_is_neither_hooked_nor_held():
    model = tiny("llama")
    model.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    held = FrozenNeurons(model, find_mlps(model), MASKS)._kept
    assert [parameter is model.model.layers[0].mlp.up_proj.weight for parameter, *_ in held] == [True]
    assert not FrozenNeurons(model, find_mlps(model), {layer: mask & False for layer, mask in MASKS.items()})._kept


def test_a_model_that_is_cut_up_is_refused():
    model = tiny("llama")
    frozen = FrozenNeurons(model, find_mlps(model), MASKS)
    frozen.on_train_begin(None, None, None)
    model.model.layers[1].mlp.up_proj.weight.data = torch.empty(0)
    with pytest.raises(UserError, match="FSDP and DeepSpeed"):
        frozen.on_train_begin(None, None, None)


@pytest.mark.parametrize("scope", ["layer", "all"])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_the_controls_freeze_as_many_in_each_layer(scope, ratio):
    generator = torch.Generator().manual_seed(3)
    scores = {layer: torch.rand(NEURONS, generator=generator) + layer for layer in (1, 0, 4)}
    useful = useful_neurons(scores, ratio, scope=scope)
    chosen = {how: choose_frozen(useful, scores, how, seed=0) for how in ("useful", "random", "inverse", "none")}
    for layer, mask in useful.items():
        count = int(mask.sum())
        assert torch.equal(chosen["useful"][layer], mask)
        assert not chosen["none"][layer].any()
        for how in ("random", "inverse"):
            assert chosen[how][layer].dtype == torch.bool
            assert chosen[how][layer].shape == (NEURONS,)
            assert int(chosen[how][layer].sum()) == count
        lowest = sorted(range(NEURONS), key=lambda neuron: float(scores[layer][neuron]))[:count]
        assert sorted(lowest) == chosen["inverse"][layer].nonzero().flatten().tolist()


def test_the_random_control_hangs_on_the_seed_alone():
    scores = {layer: torch.rand(64) for layer in (0, 1)}
    useful = useful_neurons(scores, 0.5)

    def drawn(seed):
        return choose_frozen(useful, {layer: torch.rand(64) for layer in (0, 1)}, "random", seed)

    assert all(torch.equal(drawn(1)[layer], drawn(1)[layer]) for layer in (0, 1))
    assert not torch.equal(drawn(1)[0], drawn(2)[0])
    assert not torch.equal(drawn(1)[0], drawn(1)[1])
