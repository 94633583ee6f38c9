"""A refinement for prompts that the backbone reads: its passes, and what it says on the card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.micro import micro_tokenizer
from helpers.micro_families import build, tune
from helpers.specialist import SUMS, trained_specialist
from skillweave.base import Base, open_base
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.pack import LowRankEntry, Skillpack
from skillweave.pack.card import card_text
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.skillzip.refine import prefill
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.student import Student
from skillweave.skillzip.refine.train import Divergence

ROWS = [([3, 9, 4, 7, 5, 8, 2], 4), ([6, 5, 4, 11], 1), ([3, 3, 4, 7, 9, 9], 4)]
OPENING = [4, 7]
FAST: dict[str, Any] = {"steps": 16, "held_out": 8, "max_new_tokens": 12, "patience": None}


def packed(folder: Path, to: Path) -> tuple[Base, Skillpack]:
    tuned = open_base(folder, dtype="float32", device="cpu")
    tune(tuned.model, seed=3).save_pretrained(to)
    tuned.tokenizer.save_pretrained(to)
    base = open_base(folder, dtype="float32", device="cpu")
    config = ZipConfig(ratio="1/4", allow_left_out=True)  # type: ignore[arg-type]
    return base, zip_delta(Delta.between(folder, to), base, None, config, name="t")


def by_two_passes(plain: Any, dense: Any, prefixes: Sequence[int]) -> torch.Tensor:
    """The logits of the answers in ``ROWS``, one row at a time: ``plain`` reads the prefix, ``dense`` the rest."""
    found = []
    for (ids, prompt), start in zip(ROWS, prefixes, strict=True):
        with torch.no_grad():
            cache = plain(torch.tensor([ids[:start]]), use_cache=True).past_key_values if start else None
        logits = dense(torch.tensor([ids[start:]]), past_key_values=cache, use_cache=True).logits[0]
        found.append(logits[prompt - start - 1 : len(ids) - start - 1])
    return torch.cat(found)


@pytest.mark.parametrize(("opening", "prefixes"), [([], [3, 0, 3]), (OPENING, [2, 0, 2]), ([9], [3, 0, 3])])
def test_logits_and_gradients_are_those_of_two_passes(
    micro_base: Path, tmp_path: Path, opening: list[int], prefixes: list[int]
) -> None:
    base, pack = packed(micro_base, tmp_path)
    dense = pack.unzip().apply(base).model
    wanted = by_two_passes(base.model, dense, prefixes)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
    (wanted * weights).sum().backward()
    student = Student(base.model, pack, opening)
    factors = {key: value.requires_grad_() for key, value in student.float_factors().items()}
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    with student.running(factors):
        got = student.answer_logits(ROWS)
        (got * weights).sum().backward()
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"):
        gradient = dict(dense.named_parameters())[name].grad
        left, right, entry = factors[f"{name}.A"], factors[f"{name}.B"], pack.card.entries[name]
        assert isinstance(entry, LowRankEntry)
        assert gradient is not None
        torch.testing.assert_close(left.grad, gradient @ right.T.detach(), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(right.grad, (left.T @ gradient).detach(), atol=1e-3, rtol=1e-3)
    own = Student(base.model, pack)
    with own.running(own.float_factors()), torch.no_grad():
        assert (own.answer_logits(ROWS) - wanted).abs().max() > 0.01


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma2"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Learned positions; experts whose tuned values stand in the model; a window and capped logits."""
    folder = tmp_path / "base"
    build(family).save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    base, pack = packed(folder, tmp_path / "tuned")
    write_tuned(folder, pack.unzip(), tmp_path / "dense", dtype="float32")
    dense = open_base(tmp_path / "dense", dtype="float32", device="cpu").model
    student = Student(base.model, pack, OPENING)
    with student.running(student.float_factors()), torch.no_grad():
        got = student.answer_logits(ROWS)
    torch.testing.assert_close(got, by_two_passes(base.model, dense, [2, 0, 2]), atol=2e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def made(micro_base: Path) -> tuple[Base, Delta]:
    return trained_specialist(micro_base)


def zipped(made: tuple[Base, Delta], **more: Any) -> Skillpack:
    config = ZipConfig(ratio="1/8", allow_left_out=True, **more)  # type: ignore[arg-type]
    return zip_delta(made[1], made[0], None, config, name="t", refine_on=SUMS)


@pytest.mark.parametrize("least", [-1e9, 1e9])
def test_the_card_is_marked_if_enough_of_the_gain_is_kept(
    made: tuple[Base, Delta], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], least: float
) -> None:
    monkeypatch.setattr(prefill, "LEAST_RETAINED", least)
    pack = zipped(made, refine=RefineConfig(**FAST), prefill="backbone")
    found, refined = pack.card.codec.measured["prefill"], pack.card.codec.measured["refine"]
    assert pack.card.prefill == ("backbone" if least < 0 else "pack")
    assert found["kept"] == (least < 0)
    share = (found["kl_base"] - found["kl_backbone"]) / (found["kl_base"] - found["kl_pack"])
    assert found["retained"] == pytest.approx(share, abs=2e-3)
    assert 0.3 < found["retained"] < 1.1
    assert found["held_out"] == 8
    if least < 0:
        assert found["kl_backbone"] == refined["kl_after"] < refined["kl_before"]  # trained for it
    text = "the backbone reads the prompts" if least < 0 else "with the backbone as their reader it keeps only"
    assert text in card_text(pack.card)
    assert f"{found['retained']:.1%}" in card_text(pack.card)
    assert text in " ".join(capsys.readouterr().err.split())
    assert pack.nbytes <= pack.card.bytes.bf16_delta / 8
    assert pack.card.codec.settings["prefill"] == "backbone"


def test_the_pack_with_less_total_variation_is_kept(made: tuple[Base, Delta], monkeypatch: pytest.MonkeyPatch) -> None:
    """The training chooses so, too. Here the pack before the refinement has less TV, and the one after it less KL."""
    found = iter([Divergence(kl=3.0, tv=0.1), Divergence(kl=2.0, tv=0.2)])
    monkeypatch.setattr(prefill, "divergence", lambda *_: next(found))
    monkeypatch.setattr(prefill, "LEAST_RETAINED", 1e9)
    pack = zipped(made, refine=RefineConfig(**FAST), prefill="backbone")
    assert pack.card.codec.measured["prefill"]["kl_pack"] == 3.0
    assert not pack.card.codec.measured["refine"]["refined"]


def test_what_is_kept_of_a_gain() -> None:
    assert prefill.retained_gain(1.0, 0.2, 0.2) == 1
    assert prefill.retained_gain(1.0, 0.2, 0.6) == pytest.approx(0.5)
    assert prefill.retained_gain(1.0, 0.2, 1.4) == pytest.approx(-0.5)
    assert prefill.retained_gain(1.0, 1.0, 0.5) != prefill.retained_gain(1.0, 1.0, 0.5)  # NaN: there is no gain
    assert not prefill.retained_gain(0.5, 1.0, 0.5) >= prefill.LEAST_RETAINED


def test_it_is_refused_without_a_refinement(made: tuple[Base, Delta]) -> None:
    with pytest.raises(UserError, match=r"prefill 'backbone' needs refine, because .*leave out prefill"):
        zipped(made, prefill="backbone")


def test_it_is_refused_for_a_pack_that_needs_steps_of_its_own(tmp_path: Path) -> None:
    build("mixtral").save_pretrained(tmp_path / "base")
    micro_tokenizer().save_pretrained(tmp_path / "base")
    base, pack = packed(tmp_path / "base", tmp_path / "tuned")
    with pytest.raises(UserError, match="the backbone cannot read the prompts of the pack 't', because"):
        prefill.check_shares_steps(base.model, pack)


def test_work_from_before_the_setting_goes_on() -> None:
    """Its key is a digest of the settings, which are the same without it."""
    assert "prefill" not in ZipConfig().model_dump(mode="json")
    assert ZipConfig(prefill="backbone").model_dump(mode="json")["prefill"] == "backbone"
