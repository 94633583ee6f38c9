"""A zipped delta stays within its bytes and close to the delta, and names everything that it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from helpers.whole_delta import CALIBRATION, whole_delta
from skillweave.base import Base, open_base
from skillweave.config import read_config
from skillweave.delta import Delta
from skillweave.errors import TooSmall, UserError
from skillweave.pack import DifferenceEntry, FactorsEntry, LowRankEntry, Skillpack, reference_forward
from skillweave.skillzip import ZipConfig, fit, zip_delta
from skillweave.skillzip.draft import Draft


@pytest.fixture(scope="module")
def base(micro_base: Path) -> Base:
    return open_base(micro_base, dtype="float32")


@pytest.fixture(scope="module")
def delta(base: Base) -> Delta:
    """Every tensor is changed. The singular values of matrices halve; layer 1 changes ten times as much as layer 0."""
    return whole_delta(base, 0.5, lambda name: 0.1 if "layers.1" in name else 0.01)


def weight_error(pack: Skillpack, delta: Delta) -> float:
    lost = total = 0.0
    for name in delta.names():
        wanted = delta.tensor(name)
        got = pack.decode(name) if name in pack.card.entries else torch.zeros_like(wanted)
        lost, total = lost + float((wanted - got).square().sum()), total + float(wanted.square().sum())
    return (lost / total) ** 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bits": 8},
        {"rotate": False},
        {"activation_aware": True},
        {"smoothing": 0.5},
        {"smoothing": 0.5, "activation_aware": True, "bits": 8, "other": "keep"},
        {"codec": "svd"},
    ],
)
def test_never_over_budget_and_near_the_delta(base: Base, delta: Delta, tmp_path: Path, settings: dict) -> None:
    errors = []
    for budget in (16_000, 30_000):
        pack = zip_delta(delta, base, CALIBRATION, ZipConfig(budget=budget, **settings), name="t")
        folder = pack.save_pretrained(tmp_path / str(budget))
        assert pack.nbytes == sum(file.stat().st_size for file in folder.iterdir()) <= budget
        assert pack.card.bytes.total == pack.nbytes
        errors.append(weight_error(pack, delta))
        assert pack.card.codec.measured["weight_error"] == pytest.approx(errors[-1], abs=1e-4)
    assert errors[1] < errors[0]
    assert errors[1] < 0.25


@pytest.mark.parametrize("budget", range(7_000, 30_000, 1_537))
def test_any_budget_is_met_and_used(base: Base, delta: Delta, budget: int) -> None:
    pack = zip_delta(delta, base, None, ZipConfig(budget=budget, allow_left_out=True), name="t")
    assert 0.93 * budget < pack.nbytes <= budget


def test_estimates_that_are_off_still_end_in_a_fit(base: Base, delta: Delta, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Draft.free_bytes

    def dearer_together(draft: Draft, entries: dict) -> int:
        return real(draft, entries) - 7 * len(entries) ** 2  # more than the sum of each: no estimate can know

    monkeypatch.setattr(Draft, "free_bytes", dearer_together)
    pack = zip_delta(delta, base, None, ZipConfig(budget=20_000), name="t")
    assert 15_000 < pack.nbytes <= 20_000


def test_ratio_is_a_share_of_the_whole_delta_in_bf16(base: Base, delta: Delta) -> None:
    pack = zip_delta(delta, base, None, ZipConfig(ratio="1/8"), name="t")
    numbers = sum(delta.tensor(name).numel() for name in delta.names())
    assert pack.card.bytes.bf16_delta == 2 * numbers
    assert pack.nbytes <= 2 * numbers / 8
    assert pack.card.bytes.bf16_matrices == 2 * sum(
        delta.tensor(n).numel() for n in delta.names() if delta.tensor(n).dim() == 2
    )


def test_allocation_favours_the_layer_that_changed_more(base: Base, delta: Delta) -> None:
    pack = zip_delta(delta, base, None, ZipConfig(budget=17_000), name="t")
    ranks = {name: entry.rank for name, entry in pack.card.entries.items() if isinstance(entry, LowRankEntry)}
    first = sum(rank for name, rank in ranks.items() if "layers.0" in name)
    second = sum(rank for name, rank in ranks.items() if "layers.1" in name)
    assert second > 1.5 * first


def test_more_rank_in_fewer_bits_beats_the_peer(base: Base, delta: Delta) -> None:
    ours = zip_delta(delta, base, None, ZipConfig(budget=16_000), name="t")
    peer = zip_delta(delta, base, None, ZipConfig(budget=16_000, codec="svd"), name="t")
    factors = [entry for entry in peer.card.entries.values() if len(entry.shape) == 2]
    assert all(isinstance(entry, FactorsEntry) for entry in factors)
    assert len({entry.rank for entry in factors}) == 1
    assert weight_error(ours, delta) < 0.9 * weight_error(peer, delta)


def test_integer_run_time_loses_little(base: Base, delta: Delta) -> None:
    pack = zip_delta(delta, base, CALIBRATION, ZipConfig(budget=30_000, smoothing=0.5), name="t")
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(3))
    x[:, 5] *= 30  # an outlier channel
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        wanted = x @ pack.decode(name).T
        got = reference_forward(x, pack.lowrank_parts(name))
        assert float((got - wanted).norm() / wanted.norm()) < 0.03


def test_a_group_shares_one_smoothing(base: Base, delta: Delta) -> None:
    pack = zip_delta(delta, base, CALIBRATION, ZipConfig(budget=30_000, smoothing=0.5), name="t")
    smooth = [name for name in pack.tensors if name.endswith(".smooth")]
    assert "model.layers.1.self_attn:q_proj+k_proj+v_proj.smooth" in smooth
    assert len(smooth) == 8  # four groups in each of two layers


def shares(delta: Delta) -> dict[str, float]:
    """Return the share of each tensor in the squared norm of the delta."""
    energy = {name: float(delta.tensor(name).double().square().sum()) for name in delta.names()}
    return {name: value / sum(energy.values()) for name, value in energy.items()}


def test_norms_and_embeddings_of_a_full_tune_are_in_the_pack(base: Base, delta: Delta) -> None:
    card = zip_delta(delta, base, None, ZipConfig(budget=20_000), name="t").card
    assert not card.left_out
    assert "left_out" not in card.codec.measured
    assert isinstance(card.entries["model.norm.weight"], DifferenceEntry)
    assert isinstance(card.entries["model.embed_tokens.weight"], LowRankEntry)


def test_what_is_left_out_is_named_with_its_share(base: Base, delta: Delta) -> None:
    pack = zip_delta(delta, base, None, ZipConfig(budget=20_000, other="drop"), name="t")
    norms = {name for name in delta.names() if delta.tensor(name).dim() == 1}
    assert set(pack.card.left_out) == norms
    measured = pack.card.codec.measured
    assert measured["left_out"] == pytest.approx({name: shares(delta)[name] for name in norms}, rel=0.06, abs=1e-9)
    assert measured["left_out_share"] == pytest.approx(sum(shares(delta)[name] for name in norms), rel=0.06)
    assert measured["weight_error"] == pytest.approx(weight_error(pack, delta), abs=1e-4)


def test_matrices_without_a_rank_are_left_out_by_name(base: Base, delta: Delta) -> None:
    card = zip_delta(delta, base, None, ZipConfig(budget=7_000, allow_left_out=True), name="t").card
    matrices = {name for name in delta.names() if delta.tensor(name).dim() == 2}
    lacking = matrices - set(card.entries)
    assert lacking
    assert lacking <= set(card.left_out)
    assert card.codec.measured["left_out_share"] == pytest.approx(sum(shares(delta)[n] for n in lacking), rel=0.06)


@pytest.mark.parametrize("loud", [0.2, 0.02])
def test_more_than_a_twentieth_is_not_left_out_unasked(base: Base, delta: Delta, loud: float) -> None:
    norm, other = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
    tensors = {norm: delta.tensor(norm) * 0 + loud, other: torch.eye(64)}
    share = loud**2 / (loud**2 + 1)
    tuned = Delta(tensors, base_fingerprint=base.fingerprint)
    config = {"budget": 20_000, "other": "drop"}
    allowed = zip_delta(tuned, base, None, ZipConfig(**config, allow_left_out=True), name="t").card
    assert allowed.codec.measured["left_out_share"] == pytest.approx(share, rel=0.05)
    assert allowed.codec.settings["allow_left_out"]
    if share <= 0.05:
        zip_delta(tuned, base, None, ZipConfig(**config), name="t")
        return
    with pytest.raises(UserError, match=r"leave out .*'model\.norm\.weight' .*--allow-left-out"):
        zip_delta(tuned, base, None, ZipConfig(**config), name="t")


def test_a_large_change_of_no_low_rank_gets_a_rank_before_small_ones_get_more(base: Base) -> None:
    source = torch.Generator().manual_seed(0)
    names = [name for name in base.checkpoint.names() if "_proj" in name]
    shape = base.checkpoint.shape
    tensors = {n: torch.outer(*(torch.randn(size, generator=source) for size in shape(n))) * 3e-3 for n in names}
    vocabulary = "model.embed_tokens.weight"
    tensors[vocabulary] = torch.randn(shape(vocabulary), generator=source) * 6e-3
    noisy = Delta(tensors, base_fingerprint=base.fingerprint)
    assert shares(noisy)[vocabulary] > 0.05
    assert vocabulary in zip_delta(noisy, base, None, ZipConfig(budget=14_000), name="t").card.entries


@pytest.mark.parametrize(
    "settings",
    [
        {"codec": "svd"},
        {},
        {"allow_left_out": True},
        {"scales": "row"},
        {"scales": "row", "allow_left_out": True},
    ],
)
def test_too_small_a_budget_names_the_least(base: Base, delta: Delta, settings: dict[str, Any]) -> None:
    with pytest.raises(TooSmall, match="the least that it needs is") as caught:
        zip_delta(delta, base, None, ZipConfig(budget=1_000, **settings), name="t")
    config = ZipConfig(budget=caught.value.least, **settings)
    assert zip_delta(delta, base, None, config, name="t").nbytes <= config.budget


def test_the_least_pack_is_made_even_if_the_search_misses_it(
    base: Base, delta: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "allocate_all", lambda matrices, *_: [0] * len(matrices))
    pack = zip_delta(delta, base, None, ZipConfig(budget=8_000, scales="row", allow_left_out=True), name="t")
    assert pack.nbytes <= 8_000


def test_added_tokens_are_stored_as_rows_or_refused(base: Base, delta: Delta) -> None:
    embedding = torch.randn(110, 64)
    name = "model.embed_tokens.weight"
    tensors = {key: delta.tensor(key) for key in delta.names()} | {name: embedding}
    added = Delta(tensors, base_fingerprint=base.fingerprint, whole={name})
    pack = zip_delta(added, base, None, ZipConfig(budget=40_000), name="t")
    assert torch.equal(pack.tensors[f"{name}.rows"], embedding[102:].bfloat16())
    assert name in pack.card.entries  # what changed in the base's own rows
    assert pack.unzip().shared_rows(name) == 102
    assert pack.card.bytes.bf16_delta == added.bf16_nbytes
    with pytest.raises(UserError, match=r"of them for model\.embed_tokens\.weight\.rows"):
        zip_delta(added, base, None, ZipConfig(budget=5_000), name="t")


def test_a_whole_tensor_that_the_base_has_too_becomes_a_difference(base: Base) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = base.model.state_dict()[name]
    change = torch.outer(torch.randn(64), torch.randn(64)) * 0.01
    delta = Delta({name: weight + change}, base_fingerprint=base.fingerprint, whole={name})
    pack = zip_delta(delta, base, None, ZipConfig(ratio=1.0, bits=8), name="t")
    assert pack.card.entries[name].rank == 1
    assert float((pack.decode(name) - change).norm() / change.norm()) < 0.02


def test_a_lora_gets_no_more_ranks_than_it_has(base: Base) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change = torch.randn(128, 4) @ torch.randn(4, 64) * 1e-3
    pack = zip_delta(Delta({name: change}, base_fingerprint=base.fingerprint), base, None, ZipConfig(ratio=1), name="t")
    assert pack.card.entries[name].rank == 4


@pytest.mark.parametrize("codec", ["skillzip", "svd", "rtn8", "bitdelta"])
def test_a_change_that_no_codec_can_write_is_named(base: Base, codec: str) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    huge = Delta({name: torch.full(base.checkpoint.shape(name), 1e30)}, base_fingerprint=base.fingerprint)
    with pytest.raises(
        UserError, match=r"the delta of 'model\.layers\.0\.mlp\.up_proj\.weight' holds 1e\+30, and a pack"
    ):
        zip_delta(huge, base, None, ZipConfig(budget=100_000, codec=codec), name="t")


def test_mistakes_have_their_own_messages(base: Base, delta: Delta) -> None:
    config = ZipConfig(budget=30_000)
    with pytest.raises(UserError, match="belongs on"):
        zip_delta(Delta({}, base_fingerprint="sha256:other"), base, None, config, name="t")
    with pytest.raises(UserError, match="nothing to zip"):
        zip_delta(Delta({}, base_fingerprint=base.fingerprint), base, None, config, name="t")
    q = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(UserError, match="zero in every matrix"):
        zip_delta(Delta({q: torch.zeros(64, 64)}, base_fingerprint=base.fingerprint), base, None, config, name="t")
    for bad in (q, "model.norm.weight"):
        broken = torch.full(base.model.state_dict()[bad].shape, float("nan"))
        with pytest.raises(UserError, match=rf"'{bad}' holds NaN"):
            zip_delta(Delta({bad: broken}, base_fingerprint=base.fingerprint), base, None, config, name="t")
    with pytest.raises(UserError, match="need calibration pairs"):
        zip_delta(delta, base, None, ZipConfig(activation_aware=True), name="t")
    with pytest.raises(UserError, match="unknown codec 'skilzip'; did you mean 'skillzip'"):
        zip_delta(delta, base, None, ZipConfig(codec="skilzip"), name="t")


def test_config_bounds() -> None:
    assert ZipConfig().ratio == 1 / 32
    assert ZipConfig().budget is None
    assert read_config(ZipConfig, {"budget": "8MB"}).budget == 8_000_000
    assert read_config(ZipConfig, {"ratio": "1/16"}).ratio == 1 / 16
    with pytest.raises(UserError, match="ratio or budget, not both"):
        read_config(ZipConfig, {"budget": "8MB", "ratio": "1/16"})
    for wrong in ({"bits": 3}, {"ratio": 0}, {"ratio": "3/2"}, {"budget": -1}, {"smoothing": 2}):
        with pytest.raises(ValidationError):
            ZipConfig.model_validate(wrong)
    with pytest.raises(ValidationError):
        ZipConfig.model_validate("1/32")
    assert ZipConfig.model_validate(ZipConfig(budget=5)).budget == 5
