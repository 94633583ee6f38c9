"""On a base in int8, a student computes what the weave serves, and its gradients are the straight-through ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.micro import micro_model, micro_tokenizer
from helpers.specialist import SUMS, trained_specialist
from helpers.weave_packs import random_pack
from skillweave.base import Base, fingerprint
from skillweave.pack import Skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.skillzip.refine.forward import answer_logits
from skillweave.skillzip.refine.student import Student
from skillweave.weave import PackedModel, put_into_int8
from skillweave.weave.int8 import Int8Linear

ROWS = [([3, 9, 4, 7, 5, 8, 2], 4), ([6, 5, 4, 11], 1)]
UP = "model.layers.0.mlp.up_proj"


def zipped(micro_base: Path, **settings: Any) -> tuple[Base, Skillpack]:
    """A base in int8, and the pack of a specialist that was trained on the base in floats."""
    base, delta = trained_specialist(micro_base)
    pack = zip_delta(delta, base, SUMS[:6], ZipConfig(ratio="1/4", allow_left_out=True, **settings), name="t")
    return put_into_int8(base), pack


def served_logits(base: Base, pack: Skillpack) -> torch.Tensor:
    """What the weave computes with the pack."""
    packed = PackedModel(base.model)
    packed.add(packed.prepare("t", pack))
    with packed.every_row("t"), torch.no_grad():
        return answer_logits(base.model, ROWS)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("settings", [{}, {"smoothing": 0.5, "bits": 8}, {"codec": "svd"}])
def test_a_student_answers_as_the_weave_serves(micro_base: Path, settings: dict[str, Any]) -> None:
    base, pack = zipped(micro_base, **settings)
    before, plain = state(base.model), answer_logits(base.model, ROWS)
    student = Student(base.model, pack)
    assert not student.fixed
    factors = {key: factor.requires_grad_() for key, factor in student.float_factors().items()}
    with student.running(factors):
        got = answer_logits(base.model, ROWS)
    served = served_logits(base, pack)
    # The weave rounds the inputs of the pack's own products, too; the layers' codes then differ here and there.
    assert (got - served).abs().max() < 0.06 * (served - plain).abs().max()
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize("kind", ["difference", "whole"])
def test_tensors_that_are_not_trained_are_rounded_as_they_are_served(kind: str) -> None:
    model = micro_model(seed=3, tie=False)
    base = put_into_int8(Base(model, micro_tokenizer(), fingerprint(model), "micro", path=None))  # type: ignore[arg-type]
    pack = random_pack(
        micro_model(seed=3, tie=False),
        base.fingerprint,
        only=("q_proj",),
        **{kind: (f"{UP}.weight", "model.norm.weight")},
    )
    before, plain = state(model), answer_logits(model, ROWS)
    student = Student(model, pack)
    with student.running(student.float_factors()), torch.no_grad():
        got = answer_logits(model, ROWS)
    served = served_logits(base, pack)
    assert (got - served).abs().max() < 0.03 * (served - plain).abs().max()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_gradients_are_those_of_a_slow_straight_through_model(micro_base: Path) -> None:
    """The slow model: float layers with the weights that the int8 layers stand for, and inputs rounded by hand."""
    base, pack = zipped(micro_base)
    student = Student(base.model, pack)
    factors = {key: factor.requires_grad_() for key, factor in student.float_factors().items()}
    slow = copy.deepcopy(base.model)
    for name, module in list(slow.named_modules()):
        if isinstance(module, Int8Linear):
            parent, _, own = name.rpartition(".")
            setattr(slow.get_submodule(parent), own, _SlowLinear(module))
    tied = nn.Embedding(*slow.lm_head.weight.shape)
    slow.set_input_embeddings(tied)
    tied.weight = slow.lm_head.weight
    other = Student(slow, pack)
    copies = {key: factor.detach().clone().requires_grad_() for key, factor in factors.items()}
    torch.manual_seed(0)
    found = []
    for one, own in ((student, factors), (other, copies)):
        with one.running(own):
            logits = answer_logits(one.model, ROWS)
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
            (logits * weights).sum().backward()
        found.append(logits.detach())
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=1e-3)
    for key, factor in factors.items():
        assert factor.grad is not None
        assert (factor.grad - copies[key].grad).norm() < 0.01 * factor.grad.norm(), key


class _SlowLinear(nn.Linear):
    """A float layer that computes what an int8 layer does, with x + (rounded x - x) as its input."""

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight.data = layer.decoded()
        if layer.bias is not None:
            self.bias.data = layer.bias.data.clone()
        self.kept = layer.outliers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest = x.index_fill(-1, self.kept, 0.0)
        scale = rest.detach().abs().amax(dim=-1, keepdim=True) / 127
        return super().forward(x + (scale * (rest / scale).round() - rest).detach())
