"""CIR against slow loops over tokens in float64, in models of several kinds, and beside frozen neurons."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from helpers.unlearning import NEURONS, tiny
from skillweave.errors import UserError
from skillweave.methods.cku.agreement import TwoGradients
from skillweave.methods.cku.collapse import (
    Collapse,
    Common,
    TokenMoments,
    collapsed_gradient,
    collapsible,
    common_subspace,
    fit_common,
    read_common,
    write_common,
)
from skillweave.methods.cku.neurons.freeze import frozen_rows
from skillweave.methods.cku.neurons.mlp import find_mlps


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moments(vectors: torch.Tensor) -> TokenMoments:
    found = TokenMoments(vectors.shape[1])
    for piece in vectors.split(3):
        found.add(piece)
    return found


def slow_subspace(vectors: torch.Tensor, directions: int) -> torch.Tensor:
    """Mean and principal directions by the SVD of the centred vectors, in float64: (size, k)."""
    wide = vectors.double()
    mean = wide.mean(dim=0)
    principal = torch.linalg.svd(wide - mean, full_matrices=False).Vh[:directions]
    return torch.linalg.qr(torch.cat([principal, mean[None]]).T).Q


def projector(basis: torch.Tensor) -> torch.Tensor:
    return basis.double() @ basis.double().T


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_the_subspace_is_that_of_the_mean_and_the_principal_directions(directions):
    vectors = drawn(40, 7) * torch.tensor([9.0, 5, 3, 2, 1.5, 1, 0.5]) + drawn(7, seed=1)
    basis = common_subspace(moments(vectors), directions)
    assert basis.shape == (7, directions + 1)
    torch.testing.assert_close(basis.T @ basis, torch.eye(directions + 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(projector(basis), projector(slow_subspace(vectors, directions)), atol=1e-5, rtol=0)


def test_it_has_no_more_directions_than_the_vectors():
    line = drawn(1, 6)
    assert common_subspace(moments(torch.cat([line, 2 * line, -3 * line])), 4).shape == (6, 1)  # the mean lies in it
    assert common_subspace(moments(torch.cat([line, line])), 4).shape == (6, 1)  # no variance, but a mean
    assert common_subspace(moments(torch.zeros(5, 6)), 4).shape == (6, 0)
    assert common_subspace(TokenMoments(6), 4).shape == (6, 0)
    assert common_subspace(moments(drawn(9, 6)), 0).shape == (6, 0)
    assert common_subspace(moments(drawn(9, 6)), 99).shape == (6, 6)


def test_coordinates_that_may_not_change_have_no_part_in_it():
    vectors, live = drawn(30, 6), torch.tensor([True, False, True, True, False, True])
    basis = common_subspace(moments(vectors), 2, live)
    assert not basis[~live].any()
    torch.testing.assert_close(projector(basis[live]), projector(slow_subspace(vectors[:, live], 2)), atol=1e-5, rtol=0)


def test_the_gradient_is_the_sum_over_tokens_without_the_common_parts():
    """Token by token, in float64, as the paper says it; the product of projections needs no tokens."""
    activations, gradients = drawn(11, 5, seed=2).double(), drawn(11, 4, seed=3).double()
    common = Common(slow_subspace(drawn(20, 5), 2), slow_subspace(drawn(20, 4, seed=5), 1))
    expected, bias = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for a, g in zip(activations, gradients, strict=True):
        for column in common.inputs.T:
            a = a - (a @ column) * column
        for column in common.outputs.T:
            g = g - (g @ column) * column
        expected, bias = expected + g[:, None] * a, bias + g
    torch.testing.assert_close(collapsed_gradient(gradients.T @ activations, common), expected)
    torch.testing.assert_close(collapsed_gradient(gradients.sum(dim=0), common), bias)


def test_with_no_directions_the_gradient_stays_as_it_is():
    gradient = drawn(4, 5)
    assert torch.equal(collapsed_gradient(gradient, Common(torch.zeros(5, 0), torch.zeros(4, 0))), gradient)


# -- in a model ------------------------------------------------------------------------------------------------------


def batches() -> list[dict[str, torch.Tensor]]:
    """Two batches, with padding on the right."""
    made = []
    for seed in (0, 1):
        ids = torch.randint(3, 50, (3, 8), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        labels = ids.where(mask.bool(), torch.tensor(-100)).clone()
        labels[:, :2] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def slow_vectors(model, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs and output gradients of a layer, row by row without padding, in float64."""
    model = copy.deepcopy(model).double()
    seen: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    module = model.get_submodule(name)

    def hook(_, args, output):
        seen.append(args[0].detach()[0])
        output.retain_grad()
        gradients.append(output)

    module.register_forward_hook(hook)
    for batch in batches():
        for row in range(3):
            length = int(batch["attention_mask"][row].sum())
            ids, labels = batch["input_ids"][row : row + 1, :length], batch["labels"][row, :length]
            log_probs = model(ids).logits[0].log_softmax(-1)
            places = [at for at in range(1, length) if labels[at] != -100]
            (-sum(log_probs[at - 1, labels[at]] for at in places)).backward()
    return torch.cat(seen), torch.cat([one.grad[0] for one in gradients])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_subspaces_of_a_model_are_those_of_a_slow_pass(kind):
    model = tiny(kind)
    before = copy.deepcopy(model.state_dict())
    common = fit_common(model, batches(), activations=2, gradients=3, frozen={})
    assert list(common) == collapsible(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name in list(common)[-2:]:
        inputs, gradients = slow_vectors(model, name)
        torch.testing.assert_close(
            projector(common[name].inputs), projector(slow_subspace(inputs, 2)), atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            projector(common[name].outputs), projector(slow_subspace(gradients, 3)), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
def test_frozen_neurons_get_no_gradient_by_the_collapse(kind):
    """The projection mixes the rows of a gradient: those of frozen neurons must stay 0, before any clipping."""
    model, mlps = tiny(kind), find_mlps(tiny(kind))
    masks = {layer: torch.arange(NEURONS) % 3 == 0 for layer in (0, 1)}
    rows = frozen_rows(model, mlps, masks)
    collapse = Collapse(model, fit_common(model, batches(), activations=3, gradients=3, frozen=rows))
    for name, (axis, indices) in rows.items():
        parameter = model.get_parameter(name)
        gradient = drawn(*parameter.shape, seed=7).index_fill(axis, indices, 0.0)
        changed = collapse(parameter, gradient)
        assert changed.shape == gradient.shape
        assert not changed.index_select(axis, indices).any()
        assert not torch.allclose(changed, gradient)
    embedding = model.get_input_embeddings().weight
    assert torch.equal(collapse(embedding, torch.ones_like(embedding)), torch.ones_like(embedding))


def test_a_transposed_layer_is_collapsed_like_a_plain_one():
    plain, transposed = torch.nn.Linear(5, 4), Conv1D(4, 5)
    common = {"0": Common(slow_subspace(drawn(9, 5), 1).float(), slow_subspace(drawn(9, 4), 1).float())}
    gradient = drawn(4, 5, seed=3)
    one = Collapse(torch.nn.Sequential(plain), common)(plain.weight, gradient)
    other = Collapse(torch.nn.Sequential(transposed), common)(transposed.weight, gradient.T)
    torch.testing.assert_close(one, other.T)


def test_it_is_kept_in_a_file(tmp_path):
    common = {"a.b": Common(drawn(5, 2), drawn(4, 0)), "c": Common(drawn(3, 1), drawn(3, 2))}
    write_common(tmp_path, common)
    found = read_common(tmp_path)
    assert set(found) == set(common)
    for name, spaces in common.items():
        assert torch.equal(found[name].inputs, spaces.inputs)
        assert torch.equal(found[name].outputs, spaces.outputs)


def test_without_a_trained_linear_layer_it_says_so():
    with pytest.raises(UserError, match="no linear layer is trained"):
        fit_common(tiny("llama").requires_grad_(False), batches(), activations=1, gradients=1, frozen={})


def test_the_forget_gradient_is_collapsed_before_the_signs_are_compared_and_the_retain_gradient_is_not():
    parameter = torch.nn.Parameter(torch.zeros(2))
    for agree, expected in ((True, [3.0, 1.0]), (False, [3.0, -1.0])):
        gradients = TwoGradients(agree=agree, collapse=lambda _, gradient: gradient * torch.tensor([0.5, -1.0]))
        for take, gradient in ((gradients.take_forget, [2.0, 2.0]), (gradients.take_retain, [2.0, 1.0])):
            parameter.grad = torch.tensor(gradient)
            take([parameter])
        logged = gradients.merge([parameter], lambda gradient: gradient)
        assert parameter.grad.tolist() == expected
        assert logged.pop("specific") == pytest.approx((5 / 8) ** 0.5)
        assert logged == ({"agree": 0.5} if agree else {})
