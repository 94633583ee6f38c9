"""The student computes what the unzipped pack computes, and its gradients are those of the dense weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.micro import micro_tokenizer
from helpers.micro_families import build, tune
from helpers.specialist import SUMS
from skillweave.base import Base, open_base
from skillweave.delta import Delta, write_tuned
from skillweave.pack import LowRankEntry, Skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.skillzip.refine.factors import float_factors, rounded, steps, with_factors
from skillweave.skillzip.refine.forward import answer_logits
from skillweave.skillzip.refine.student import Student

EMBEDDING = "model.embed_tokens.weight"
ROWS = [([3, 9, 4, 7, 5, 8, 2], 4), ([6, 5, 4, 11], 1)]


def packed(folder: Path, to: Path, settings: dict[str, Any]) -> tuple[Base, Skillpack]:
    tuned = open_base(folder, dtype="float32", device="cpu")
    tune(tuned.model, seed=3).save_pretrained(to)
    tuned.tokenizer.save_pretrained(to)
    base = open_base(folder, dtype="float32", device="cpu")
    config = ZipConfig(ratio="1/4", allow_left_out=True, **settings)
    return base, zip_delta(Delta.between(folder, to), base, SUMS[:6], config, name="t")


def reference_logits(model: Any) -> torch.Tensor:
    """The logits that predict the tokens of the answers in ``ROWS``, one row at a time."""
    rows = [model(torch.tensor([ids])).logits[0, prompt - 1 : len(ids) - 1] for ids, prompt in ROWS]
    return torch.cat(rows)


@pytest.mark.parametrize("settings", [{}, {"smoothing": 0.5, "bits": 8}, {"codec": "svd"}])
def test_a_student_answers_as_the_unzipped_pack(micro_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    base, pack = packed(micro_base, tmp_path, settings)
    student = Student(base.model, pack)
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"} <= set(student.trainable)
    assert not student.fixed
    factors = {key: value.requires_grad_() for key, value in student.float_factors().items()}
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    dense = pack.unzip().apply(base).model
    wanted = reference_logits(dense)
    torch.manual_seed(0)
    weights = torch.randn(wanted.shape)
    (wanted * weights).sum().backward()
    with student.running(factors):
        got = answer_logits(base.model, ROWS)
        (got * weights).sum().backward()
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)
    assert (wanted - reference_logits(base.model)).abs().max() > 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.model.parameters())

    for name in (EMBEDDING, "model.layers.0.self_attn.q_proj.weight"):
        gradient = dict(dense.named_parameters())[name].grad
        assert gradient is not None
        left, right, entry = factors[f"{name}.A"], factors[f"{name}.B"], pack.card.entries[name]
        smooth = torch.ones(right.shape[1])
        if isinstance(entry, LowRankEntry) and entry.smooth:
            smooth = pack.tensors[f"{entry.group}.smooth"].float()
        torch.testing.assert_close(left.grad, gradient @ (right / smooth).T.detach(), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(right.grad, (left.T @ gradient / smooth).detach(), atol=1e-3, rtol=1e-3)


def test_the_scales_of_signs_are_trained(micro_base: Path, tmp_path: Path) -> None:
    """The gradient of a scale is that of the dense weight, summed over the signs."""
    base, pack = packed(micro_base, tmp_path, {"codec": "bitdelta"})
    student = Student(base.model, pack)
    factors = {key: value.requires_grad_() for key, value in student.float_factors().items()}
    assert f"{EMBEDDING}.scale" in factors
    dense = pack.unzip().apply(base).model
    wanted = reference_logits(dense)
    wanted.square().sum().backward()
    with student.running(factors):
        got = answer_logits(base.model, ROWS)
        got.square().sum().backward()
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)
    for name in (EMBEDDING, "model.layers.0.self_attn.q_proj.weight"):
        gradient = dict(dense.named_parameters())[name].grad
        assert gradient is not None
        by_hand = (gradient * pack.decode(name).sign()).sum()
        torch.testing.assert_close(factors[f"{name}.scale"].grad, by_hand.view(1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma2"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Transposed layers, experts that no hook can change, and a head with capped logits and scaled embeddings."""
    folder = tmp_path / "base"
    build(family).save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    base, pack = packed(folder, tmp_path / "tuned", {})
    student = Student(base.model, pack)
    assert bool(student.fixed) == (family == "mixtral")
    assert len(student.trainable) > 2
    write_tuned(folder, pack.unzip(), tmp_path / "dense", dtype="float32")
    dense = open_base(tmp_path / "dense", dtype="float32", device="cpu").model
    with student.running(student.float_factors()), torch.no_grad():
        got = answer_logits(base.model, ROWS)
    torch.testing.assert_close(got, reference_logits(dense), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"bits": 4, "scales": "row"}, {"bits": 8, "scales": "row"}, {"codec": "svd"}, {"codec": "bitdelta"}],
)
def test_rounded_factors_are_those_of_the_new_pack(micro_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    _, pack = packed(micro_base, tmp_path, settings)
    names = [name for name, entry in pack.card.entries.items() if hasattr(entry, "rank")]
    same = with_factors(pack, {key: value for name in names for key, value in float_factors(pack, name).items()})
    assert all(torch.equal(same.tensors[name], tensor) for name, tensor in pack.tensors.items())
    torch.manual_seed(1)
    moved = {
        key: value * (1 + 0.3 * torch.randn(value.shape))
        for name in names
        for key, value in float_factors(pack, name).items()
    }
    changed = with_factors(pack, moved)
    changed.check_values()
    assert changed.specs == pack.specs
    for name in names:
        for key, value in float_factors(changed, name).items():
            assert torch.equal(value, rounded(moved[key], pack.card.entries[name], steps(pack).get(key)))  # type: ignore[arg-type]
            assert not torch.equal(value, float_factors(pack, name)[key])
