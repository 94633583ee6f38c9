"""Neuron scores against slow loops, on planted neurons, and at their edge cases; the model stays unchanged."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
)

from helpers.planted import PlantedFact, fact_batches, planted_model
from skillweave.base.batching import padded
from skillweave.errors import UserError
from skillweave.methods.cku.neurons.mlp import Slice
from skillweave.methods.cku.neurons.scorers import (
    SCORERS,
    NeuronStatistics,
    contrast,
    default_layers,
    gather,
    neuron_scores,
    per_neuron,
    useful_neurons,
)

SHAPE = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
MODELS = {
    "llama": LlamaConfig(**SHAPE, intermediate_size=12),
    "phi3": Phi3Config(**SHAPE, intermediate_size=12),
    "gpt2": GPT2Config(**SHAPE, n_inner=12),
    "opt": OPTConfig(**SHAPE, ffn_dim=12, word_embed_proj_dim=8, max_position_embeddings=32),
    "gemma2": Gemma2Config(**SHAPE, intermediate_size=12, head_dim=4, num_key_value_heads=1),
}
LAYER = 1
ROWS = [([5, 9, 3], [7]), ([4], [30, 31, 8, 2]), ([11, 12], [13, 14]), ([6, 6, 6, 9, 1], [21, 22])]


def tiny(kind: str):
    """A random model, biases included, with dropout that must not be seen."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def two_batches() -> list[dict[str, torch.Tensor]]:
    return [padded(ROWS[:2], 0), padded(ROWS[2:], 0)]


def mlp_by_hand(model, kind: str):
    """(modules that feed the neurons, down, (i, of) -> what is neuron i's in ``of`` each of its parameters)."""
    if kind == "opt":
        block = model.model.decoder.layers[LAYER]
        first, down = block.fc1, block.fc2
        return [first], down, lambda i, of: [of(first.weight)[i], of(first.bias)[i : i + 1], of(down.weight)[:, i]]
    if kind == "gpt2":
        mlp = model.transformer.h[LAYER].mlp
        first, down = mlp.c_fc, mlp.c_proj
        return [first], down, lambda i, of: [of(first.weight)[:, i], of(first.bias)[i : i + 1], of(down.weight)[i]]
    mlp = model.model.layers[LAYER].mlp
    down = mlp.down_proj
    if kind == "phi3":
        both = mlp.gate_up_proj
        return [both], down, lambda i, of: [of(both.weight)[i], of(both.weight)[12 + i], of(down.weight)[:, i]]
    gate, up = mlp.gate_proj, mlp.up_proj
    return [gate, up], down, lambda i, of: [of(gate.weight)[i], of(up.weight)[i], of(down.weight)[:, i]]


def slow_scores(model, kind: str, batches) -> dict[str, list[float]]:
    """Every scorer by loops over neurons, tokens and weights, in float64; rows go in one by one without padding."""
    model = copy.deepcopy(model).double().eval()
    ins, down, parts = mlp_by_hand(model, kind)
    h: list[list[float]] = []
    x: list[list[float]] = []
    handles = [
        down.register_forward_pre_hook(lambda _, args: h.extend(args[0].reshape(-1, 12).tolist())),
        ins[0].register_forward_pre_hook(lambda _, args: x.extend(args[0].reshape(-1, 8).tolist())),
    ]
    saliency, squared, steps = [0.0] * 12, [0.0] * 12, 0
    for batch in batches:
        losses = []
        for ids, mask, labels in zip(*(batch[name] for name in ("input_ids", "attention_mask", "labels")), strict=True):
            length = int(mask.sum())
            log_probs = model(input_ids=ids[None, :length]).logits[0].log_softmax(dim=-1)
            losses += [-log_probs[at - 1, labels[at]] for at in range(1, length) if labels[at] != -100]
        model.zero_grad()
        (sum(losses) / len(losses)).backward()
        steps += 1
        for i in range(12):
            weights = torch.cat(parts(i, lambda weight: weight.detach())).tolist()
            gradients = torch.cat(parts(i, lambda weight: weight.grad)).tolist()
            saliency[i] += sum(abs(w * g) for w, g in zip(weights, gradients, strict=True))
            squared[i] += sum(g * g for g in gradients) / len(gradients)
    for handle in handles:
        handle.remove()
    norms = [math.sqrt(sum(token[j] ** 2 for token in x)) for j in range(8)]
    wanda = []
    for i in range(12):
        *rows, column = (part.tolist() for part in parts(i, lambda weight: weight.detach()))
        own = math.sqrt(sum(token[i] ** 2 for token in h))
        score = sum(abs(w) * own for w in column)
        for row in rows:
            if len(row) == 8:  # a bias has no input
                score += sum(abs(w) * norm for w, norm in zip(row, norms, strict=True))
        wanda.append(score)
    return {
        "activation": [sum(abs(token[i]) for token in h) / len(h) for i in range(12)],
        "wanda": wanda,
        "snip": saliency,
        "fisher": [value / steps for value in squared],
    }


@pytest.mark.parametrize("kind", MODELS)
def test_scores_against_slow_loops(kind):
    """Gated, fused, with and without biases, stored the other way round, with capped logits."""
    model = tiny(kind).train()
    slow = slow_scores(model, kind, two_batches())
    for scorer in SCORERS:
        scores = neuron_scores(model, two_batches(), scorer=scorer, layers=[LAYER])
        assert list(scores) == [LAYER]
        assert scores[LAYER].dtype == torch.float32
        torch.testing.assert_close(scores[LAYER].double(), torch.tensor(slow[scorer]).double(), rtol=2e-4, atol=1e-7)


def test_a_model_that_takes_no_logits_to_keep_scores_alike():
    model = tiny("llama")
    expected = neuron_scores(model, two_batches(), scorer="snip", layers=[0, 1])
    inner = model.forward
    model.forward = lambda input_ids, attention_mask, use_cache: inner(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
    )
    found = neuron_scores(model, two_batches(), scorer="snip", layers=[0, 1])
    for layer in (0, 1):
        torch.testing.assert_close(found[layer], expected[layer])


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_padding_changes_no_score(kind):
    model, batch = tiny(kind), padded(ROWS, 0)
    wide = {
        name: torch.cat([values, torch.full((len(ROWS), 5), {"labels": -100}.get(name, 0))], dim=1)
        for name, values in batch.items()
    }
    wide["input_ids"][wide["attention_mask"] == 0] = 17
    for scorer in SCORERS:
        narrow_scores = neuron_scores(model, [batch], scorer=scorer, layers=[0, 1])
        wide_scores = neuron_scores(model, [wide], scorer=scorer, layers=[0, 1])
        for layer in (0, 1):
            torch.testing.assert_close(wide_scores[layer], narrow_scores[layer], rtol=1e-4, atol=1e-8)


def test_batches_stream_and_their_sums_add_up():
    model = tiny("llama")
    both = gather(model, iter(two_batches()), [0, 1], gradients=True)
    one, other = (gather(model, [batch], [0, 1], gradients=True) for batch in two_batches())
    for layer in (0, 1):
        assert both[layer].tokens == one[layer].tokens + other[layer].tokens == sum(len(p) + len(a) for p, a in ROWS)
        assert both[layer].steps == 2
        for name in ("absolute", "squared", "saliency", "gradient"):
            expected = getattr(one[layer], name) + getattr(other[layer], name)
            torch.testing.assert_close(getattr(both[layer], name), expected)
        for total, a, b in zip(both[layer].inputs, one[layer].inputs, other[layer].inputs, strict=True):
            torch.testing.assert_close(total, a + b)


def test_a_batch_without_labels_is_no_step_but_its_tokens_count():
    model = tiny("llama")
    bare = padded([([5, 6, 7], [])], 0)
    found = gather(model, [*two_batches(), bare], [LAYER], gradients=True)[LAYER]
    plain = gather(model, two_batches(), [LAYER], gradients=True)[LAYER]
    assert (found.steps, found.tokens) == (2, plain.tokens + 3)
    assert torch.equal(found.saliency, plain.saliency)
    assert (found.absolute > plain.absolute).all()


def traces(model):
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks), module.training) for module in model.modules()
    ] + [
        (parameter.requires_grad, id(parameter.grad), len(parameter._post_accumulate_grad_hooks or ()))
        for parameter in model.parameters()
    ]


@pytest.mark.parametrize("scorer", ["wanda", "fisher"])
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(scorer, broken):
    """Also where the data breaks off with an error, and where some parameters had gradients already."""
    model = tiny("llama").train()
    model.model.layers[0].eval()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    kept = model.model.layers[1].mlp.down_proj.weight
    kept.grad = torch.full_like(kept, 3.0)
    before, weights = traces(model), copy.deepcopy(model.state_dict())

    def batches():
        yield from two_batches()
        if broken:
            raise OSError("the disk is gone")

    if broken:
        with pytest.raises(OSError, match="the disk is gone"):
            neuron_scores(model, batches(), scorer=scorer, layers=[0, 1])
    else:
        neuron_scores(model, batches(), scorer=scorer, layers=[0, 1])
    assert traces(model) == before
    assert (kept.grad == 3.0).all()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_gradients_go_no_deeper_than_the_lowest_chosen_layer():
    model = tiny("llama")
    needed = {}
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda _, __, out, layer=layer: needed.update({layer: out.requires_grad}))
    neuron_scores(model, two_batches(), scorer="snip", layers=[1])
    assert needed == {0: False, 1: True}
    neuron_scores(model, two_batches(), scorer="activation", layers=[1])
    assert needed == {0: False, 1: False}


def test_scoring_inside_no_grad_is_the_same():
    model = tiny("llama")
    expected = neuron_scores(model, two_batches(), scorer="fisher", layers=[1])
    with torch.no_grad():
        assert torch.equal(neuron_scores(model, two_batches(), scorer="fisher", layers=[1])[1], expected[1])


def test_bfloat16_scores_are_near_and_float32():
    model = tiny("llama")
    for scorer in SCORERS:
        exact = neuron_scores(model, two_batches(), scorer=scorer, layers=[1])[1]
        rounded = neuron_scores(copy.deepcopy(model).bfloat16(), two_batches(), scorer=scorer, layers=[1])[1]
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.15, atol=0.03 * float(exact.max()))


@pytest.mark.gpu
def test_a_gpu_scores_alike():
    model = tiny("llama")
    for scorer in SCORERS:
        here = neuron_scores(model.cpu(), two_batches(), scorer=scorer, layers=[1])[1]
        there = neuron_scores(model.cuda(), two_batches(), scorer=scorer, layers=[1])[1]
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("inner", [False, True])
def test_fresh_adapters_change_no_score(inner):
    expected = neuron_scores(tiny("llama"), two_batches(), scorer="snip", layers=[0, 1])
    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules="all-linear"))
    found = neuron_scores(model.get_base_model() if inner else model, two_batches(), scorer="snip", layers=[0, 1])
    for layer in (0, 1):
        torch.testing.assert_close(found[layer], expected[layer])


# -- planted neurons ---------------------------------------------------------------------------------------------------

RETAIN = [PlantedFact(1, 3, 8, 20), PlantedFact(1, 17, 9, 21), PlantedFact(2, 0, 10, 22)]
FORGET = [PlantedFact(1, 5, 11, 23), PlantedFact(1, 20, 12, 24), PlantedFact(2, 9, 13, 25)]
BOTH = [PlantedFact(1, 11, 14, 26), PlantedFact(2, 23, 15, 27)]


def at(facts, layer: int) -> list[int]:
    return sorted(fact.neuron for fact in facts if fact.layer == layer)


def test_the_planted_model_knows_its_facts():
    model = planted_model(RETAIN + FORGET + BOTH)
    for fact in RETAIN + FORGET + BOTH:
        probs = model(torch.tensor([[2, fact.key]])).logits[0, -1].detach().softmax(dim=-1)
        assert int(probs.argmax()) == fact.value
        assert 0.4 < float(probs[fact.value]) < 0.9


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_finds_the_planted_neurons(scorer):
    """The best-scoring neurons are those that hold facts which the data asks for; the others' facts do not count."""
    model = planted_model(RETAIN + FORGET + BOTH)
    scores = neuron_scores(model, fact_batches(RETAIN + BOTH), scorer=scorer, layers=[1, 2])
    for layer in (1, 2):
        wanted = at(RETAIN + BOTH, layer)
        best = scores[layer].sort(descending=True)
        assert sorted(best.indices[: len(wanted)].tolist()) == wanted
        assert best.values[len(wanted) - 1] > 1.5 * best.values[len(wanted)]


@pytest.mark.parametrize("of", SCORERS)
def test_contrast_tells_what_both_need_from_what_only_one_needs(of):
    model = planted_model(RETAIN + FORGET + BOTH)
    retain, forget = fact_batches(RETAIN + BOTH), fact_batches(FORGET + BOTH)
    scores = neuron_scores(model, retain, scorer="contrast", layers=[1, 2], against=forget, of=of)
    for layer in (1, 2):
        only, shared, gone = (scores[layer][at(facts, layer)] for facts in (RETAIN, BOTH, FORGET))
        assert only.min() > shared.max() + 0.3
        assert shared.min() > gone.max() + 0.3
        assert int(scores[layer].argmax()) in at(RETAIN, layer)
        assert int(scores[layer].argmin()) in at(FORGET, layer)
        frozen = useful_neurons(scores, 0.8)[layer]
        assert frozen[at(RETAIN, layer)].all()
        assert not frozen[at(FORGET, layer)].any()


def test_contrast_is_by_default_that_of_snip():
    model = planted_model(RETAIN + FORGET + BOTH)
    retain, forget = fact_batches(RETAIN + BOTH), fact_batches(FORGET + BOTH)
    found = neuron_scores(model, retain, scorer="contrast", layers=[1], against=forget)[1]
    sides = [neuron_scores(model, batches, scorer="snip", layers=[1])[1] for batches in (retain, forget)]
    assert torch.equal(found, contrast(*sides))


# -- the pure functions ------------------------------------------------------------------------------------------------


def test_contrast_in_closed_form():
    retain, forget = torch.tensor([4.0, 1.0, 1.0, 2.0]), torch.tensor([10.0, 10.0, 40.0, 20.0])
    expected = [math.log(2 / 0.5), math.log(0.5 / 0.5), math.log(0.5 / 2), math.log(1 / 1)]
    assert contrast(retain, forget).tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(contrast(1e3 * retain, 1e-6 * forget), contrast(retain, forget))
    torch.testing.assert_close(contrast(forget, retain), -contrast(retain, forget))


def test_contrast_of_neurons_that_neither_needs_is_zero():
    retain, forget = torch.tensor([1.0, 1e-7, 0.0, 1.0]), torch.tensor([1.0, 1e-12, 0.0, 0.0])
    found = contrast(retain, forget)
    assert found[1:3].tolist() == [0.0, 0.0]
    assert torch.isfinite(found).all()
    assert found[3] > found[0]
    assert contrast(torch.zeros(3), torch.zeros(3)).tolist() == [0.0] * 3
    assert contrast(torch.zeros(0), torch.zeros(0)).tolist() == []


def test_scorers_on_numbers_by_hand():
    """Two neurons, two inputs, one token of h = (3, 0) and x = (1, 2)."""
    statistics = NeuronStatistics(
        tokens=1,
        steps=2,
        absolute=torch.tensor([3.0, 0.0]),
        squared=torch.tensor([9.0, 0.0]),
        inputs=(torch.tensor([1.0, 4.0]),),
        ins=(torch.tensor([[[1.0, -1.0], [0.0, 5.0]]]),),
        down=torch.tensor([[2.0, -1.0], [7.0, 7.0]]),
        saliency=torch.tensor([0.5, 0.25]),
        gradient=torch.tensor([8.0, 16.0]),
        parameters=4,
    )
    found = {name: scorer(statistics).tolist() for name, scorer in SCORERS.items()}
    assert found == {"activation": [3, 0], "wanda": [1 + 2 + 9, 10], "snip": [0.5, 0.25], "fisher": [1, 2]}


def test_per_neuron_sums_every_copy_along_any_axis():
    values = torch.arange(24.0).reshape(6, 4)
    assert per_neuron(values, Slice("w", 0, 2), 3).tolist() == [
        float(values[i].sum() + values[3 + i].sum()) for i in range(3)
    ]
    assert per_neuron(values, Slice("w", 1, 1), 4).tolist() == values.sum(dim=0).tolist()
    assert per_neuron(torch.tensor([1.0, 2.0, 3.0, 4.0]), Slice("b", 0, 2), 2).tolist() == [4.0, 6.0]


@pytest.mark.parametrize(("ratio", "count"), [(0, 0), (0.04, 0), (0.3, 3), (0.74, 7), (0.8, 8), (1, 10)])
def test_exactly_the_asked_share_is_useful(ratio, count):
    scores = torch.randperm(10, generator=torch.Generator().manual_seed(0)).float()
    mask = useful_neurons({4: scores}, ratio)[4]
    assert mask.dtype == torch.bool
    assert set(scores[mask].tolist()) == set(range(10 - count, 10))


def test_ties_go_to_the_lower_index_and_layer():
    equal = {7: torch.ones(4), 2: torch.ones(4)}
    assert useful_neurons({0: torch.tensor([1.0, 2.0, 2.0, 2.0])}, 0.5)[0].tolist() == [False, True, True, False]
    many = useful_neurons({0: torch.ones(5000)}, 0.3)[0]  # enough for a sort to lose their order, if it may
    assert many[:1500].all()
    masks = useful_neurons(equal, 0.75, scope="all")
    assert {layer: mask.tolist() for layer, mask in masks.items()} == {2: [True] * 4, 7: [True, True, False, False]}


def test_over_all_layers_the_better_layer_gets_more():
    scores = {0: torch.tensor([1.0, 9.0, 2.0]), 1: torch.tensor([8.0, 7.0, float("inf"), -1.0, 3.0])}
    masks = useful_neurons(scores, 0.5, scope="all")
    assert masks[0].tolist() == [False, True, False]
    assert masks[1].tolist() == [True, True, True, False, False]


def test_masks_of_nothing():
    assert useful_neurons({}, 0.8) == useful_neurons({}, 0.8, scope="all") == {}
    assert useful_neurons({0: torch.ones(1)}, 0.8)[0].tolist() == [True]


@pytest.mark.parametrize("scope", ["layer", "all"])
def test_bad_ratios_and_nan_are_refused(scope):
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="is not a share"):
            useful_neurons({0: torch.ones(3)}, ratio, scope=scope)
    with pytest.raises(UserError, match="layer 6 contain NaN"):
        useful_neurons({0: torch.ones(3), 6: torch.tensor([1.0, float("nan")])}, 0.5, scope=scope)


def test_default_layers_are_at_the_depth_of_8_to_12_of_32():
    assert default_layers(32) == [8, 9, 10, 11, 12]
    assert default_layers(30) == [7, 8, 9, 10, 11]
    assert default_layers(4) == [1]
    assert default_layers(1) == [0]


def test_mistakes_are_named():
    model = tiny("llama")
    with pytest.raises(UserError, match="unknown scorer 'snipp': did you mean 'snip'"):
        neuron_scores(model, two_batches(), scorer="snipp", layers=[0])
    with pytest.raises(UserError, match="contrast of an unknown scorer 'contrast'"):
        neuron_scores(model, [], scorer="contrast", layers=[0], against=[], of="contrast")
    with pytest.raises(UserError, match=r"does not have the layers \[2, -1\]: it has 2"):
        neuron_scores(model, two_batches(), scorer="snip", layers=[0, 2, -1])
    with pytest.raises(UserError, match="no batch has a token"):
        neuron_scores(model, [], scorer="activation", layers=[0])
    with pytest.raises(UserError, match="no batch has a label"):
        neuron_scores(model, [padded([([5, 6], [])], 0)], scorer="fisher", layers=[0])
    with pytest.raises(ValueError, match="against"):
        neuron_scores(model, two_batches(), scorer="contrast", layers=[0])
    with pytest.raises(ValueError, match="against"):
        neuron_scores(model, two_batches(), scorer="snip", layers=[0], against=two_batches())
