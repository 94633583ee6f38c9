"""The MLPs of many kinds of models are found, and a neuron's slices are all that the neuron is."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.micro import micro_model
from skillweave.errors import UserError
from skillweave.methods.cku.neurons.mlp import MLP, Slice, evaluating, find_mlps, slices

GATED = (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
KINDS = {
    "llama": ("model.layers", *GATED),
    "mistral": ("model.layers", *GATED),
    "qwen2": ("model.layers", *GATED),
    "qwen3": ("model.layers", *GATED),
    "gemma": ("model.layers", *GATED),
    "gemma2": ("model.layers", *GATED),
    "stablelm": ("model.layers", *GATED),
    "phi3": ("model.layers", ("mlp.gate_up_proj",), "mlp.down_proj"),
    "phi": ("model.layers", ("mlp.fc1",), "mlp.fc2"),
    "opt": ("model.decoder.layers", ("fc1",), "fc2"),
    "gpt2": ("transformer.h", ("mlp.c_fc",), "mlp.c_proj"),
    "gptj": ("transformer.h", ("mlp.fc_in",), "mlp.fc_out"),
    "gpt_neox": ("gpt_neox.layers", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    "bloom": ("transformer.h", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    "falcon": ("transformer.h", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    # Its attention is gated: one linear layer's output is multiplied into the input of another, feature by feature.
    "qwen3_5_text": ("model.layers", *GATED),
}
HIDDEN = 16


def tiny(kind: str, neurons: int, **options):
    """A random model of this kind with attention of two heads, all its matrices as square as it lets us."""
    settings = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": HIDDEN, "vocab_size": 50}
    settings |= {"max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    settings |= {"intermediate_size": neurons, "ffn_dim": neurons, "n_inner": neurons, "ffn_hidden_size": neurons}
    settings |= {"num_key_value_heads": 2, "rotary_dim": 4} | ({} if kind == "falcon" else {"head_dim": 8})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings | options))


def size_of(kind: str, neurons: int) -> int:
    return 4 * HIDDEN if kind == "bloom" else neurons  # Bloom has no setting for it


def inputs_of(model, name: str) -> torch.Tensor:
    """What enters the module ``name`` for six tokens: (6, features)."""
    caught = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 9, 4, 4, 20, 7]]), use_cache=False)
    handle.remove()
    return caught[0].reshape(6, -1)


@pytest.mark.parametrize("neurons", [11, 24, HIDDEN, 3 * HIDDEN])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mlp_of_every_layer_is_found(kind, neurons):
    """Also where a neuron's weights have the shape of attention's: as many neurons as features, or thrice as many; and
    where the last few of a tensor's numbers are computed, and rounded, otherwise than the rest (11)."""
    path, ins, down = KINDS[kind]
    expected = [
        MLP(layer, tuple(f"{path}.{layer}.{name}" for name in ins), f"{path}.{layer}.{down}", size_of(kind, neurons))
        for layer in range(2)
    ]
    assert find_mlps(tiny(kind, neurons)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_neurons_slices_are_all_of_it_and_nothing_else(kind):
    """With its slices at zero a neuron is silent whatever it reads, no other neuron of its layer has changed, and
    what enters ``down`` there is not read any more."""
    model = tiny(kind, 24).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases begin at zero
    mlp, neuron = find_mlps(model)[1], 5
    before = inputs_of(model, mlp.down)
    with torch.no_grad():
        for one in slices(model, mlp):
            parameter = model.get_parameter(one.parameter)
            for copy in range(one.copies):
                parameter.select(one.axis, neuron + copy * mlp.neurons).zero_()
    after = inputs_of(model, mlp.down)
    others = torch.arange(mlp.neurons) != neuron
    assert (before[:, neuron] != 0).any()
    assert (after[:, neuron] == 0).all()
    assert torch.equal(after[:, others], before[:, others])
    down = model.get_submodule(mlp.down)
    bias = 0 if down.bias is None else down.bias
    with torch.no_grad():
        written = down(torch.eye(mlp.neurons)) - bias
    assert (written[neuron].abs() < 1e-6).all()
    assert (written[others].abs().sum(dim=1) > 1e-3).all()


def test_slices_name_weights_and_biases_but_not_the_one_of_down():
    gpt2, phi3 = tiny("gpt2", 24), tiny("phi3", 24)
    assert slices(gpt2, find_mlps(gpt2)[0]) == [
        Slice("transformer.h.0.mlp.c_fc.weight", 1, 1),
        Slice("transformer.h.0.mlp.c_fc.bias", 0, 1),
        Slice("transformer.h.0.mlp.c_proj.weight", 0, 1),
    ]
    assert slices(phi3, find_mlps(phi3)[1]) == [
        Slice("model.layers.1.mlp.gate_up_proj.weight", 0, 2),
        Slice("model.layers.1.mlp.down_proj.weight", 1, 1),
    ]


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_a_mixture_of_experts_is_refused_with_the_reason(kind):
    """Also one that has a shared expert, which looks like any MLP."""
    experts = {"num_experts": 4, "num_local_experts": 4}
    options = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 24}
    with pytest.raises(UserError, match=r"layer 0 is a mixture of experts \(mlp.experts.* its router decides"):
        find_mlps(tiny(kind, 24, **experts, **options))


def test_neurons_that_a_norm_mixes_are_refused():
    with pytest.raises(UserError, match=r"layer 0: expected one linear layer.*a norm on the neurons"):
        find_mlps(tiny("bitnet", 24))


def test_a_layer_with_two_mlps_is_refused():
    model = tiny("llama", 24)

    class Twice(nn.Module):
        def __init__(self, one: nn.Module, other: nn.Module) -> None:
            super().__init__()
            self.one, self.other = one, other

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.other(x)

    model.model.layers[1].mlp = Twice(model.model.layers[1].mlp, tiny("llama", 32).model.layers[1].mlp)
    with pytest.raises(UserError, match=r"layer 1: .* several do: .*mlp.one.down_proj, .*mlp.other.down_proj"):
        find_mlps(model)


@pytest.mark.parametrize("how", ["shifted", "lopsided"])
def test_neurons_that_are_not_rows_of_linear_layers_are_refused(how):
    """Fed by a bare matrix too, in a first layer whose attention stands beside the MLP and so does not betray it; or
    gated in their first half alone."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(HIDDEN, 36 if how == "lopsided" else 24), nn.Linear(24, HIDDEN)
            self.free = nn.Parameter(torch.randn(24, HIDDEN))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.first(x))
            if how == "shifted":
                return self.last(h + x @ self.free.T)
            return self.last(torch.cat([h[..., :12] * h[..., 24:], h[..., 12:24]], dim=-1))

    model = tiny("phi", 24)
    model.model.layers[0].mlp = Odd()
    with pytest.raises(UserError, match="layer 0: expected one linear layer"):
        find_mlps(model)


def test_a_model_without_a_list_of_its_layers_is_refused():
    model = tiny("llama", 24)
    model.config.num_hidden_layers = 3
    with pytest.raises(UserError, match=r"one list of 3 decoder layers.*found 0 .*model.layers \(2\)"):
        find_mlps(model)


def test_a_list_inside_a_layer_is_not_taken_for_the_layers():
    model = tiny("llama", 24)
    model.model.layers[0].spare = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    assert [mlp.down for mlp in find_mlps(model)] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def test_silent_weights_hide_nothing():
    """A model whose MLPs, or whose attention, were set to zero has the same MLPs still."""
    model = tiny("llama", HIDDEN)
    expected = find_mlps(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.zero_()
    assert find_mlps(model) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_finds_the_same(dtype):
    model = tiny("gemma2", HIDDEN)
    assert find_mlps(model.to(dtype)) == find_mlps(tiny("gemma2", HIDDEN))


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_read_there():
    assert find_mlps(tiny("phi3", HIDDEN).cuda()) == find_mlps(tiny("phi3", HIDDEN))


@pytest.mark.parametrize("inner", [False, True])
def test_adapters_belong_to_their_linear_layer(inner):
    plain = micro_model()
    expected = [(mlp.layer, mlp.ins, mlp.down) for mlp in find_mlps(plain)]
    model = get_peft_model(plain, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model = model.get_base_model() if inner else model
    start = "" if inner else "base_model.model."
    found = find_mlps(model)
    assert [
        (mlp.layer, tuple(name.removeprefix(start) for name in mlp.ins), mlp.down.removeprefix(start)) for mlp in found
    ] == expected
    names = dict(model.named_parameters())
    assert all(one.parameter in names and "base_layer" in one.parameter for one in slices(model, found[0]))


def test_looking_leaves_no_trace():
    model = tiny("opt", 24, dropout=0.5).train()
    model.model.decoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    find_mlps(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_after_an_error():
    model = tiny("llama", 24).train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training
        raise RuntimeError
    assert all(module.training for module in model.modules())
