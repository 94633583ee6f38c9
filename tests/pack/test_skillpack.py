"""A pack on disk: what is saved comes back, and every kind of damage has its own message."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.small_pack import DOWN, NORM, Q, make_pack, rehash
from helpers.terminal import Ran, made
from skillweave import progress
from skillweave.base import Base, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import (
    BaseRef,
    Codec,
    DifferenceEntry,
    PackBytes,
    PackCard,
    Skillpack,
    reference_forward,
)
from skillweave.pack.card import card_text
from skillweave.pack.to_lora import export_lora
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave
from skillweave.weave.parts import AddedPack


def test_saved_is_loaded_again(tmp_path: Path) -> None:
    pack = make_pack()
    pack.card.scores = {"kl": 0.001}
    folder = pack.save_pretrained(tmp_path / "pack")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "skillpack.json", "skillpack.safetensors"]
    loaded = Skillpack.from_pretrained(folder)
    assert loaded.card == pack.card
    assert set(loaded.tensors) == set(pack.tensors)
    for name, tensor in pack.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_nbytes_are_the_files_and_the_parts_add_up(tmp_path: Path) -> None:
    pack = make_pack()
    pack.card.bytes.bf16_delta = 123456
    before = pack.nbytes
    folder = pack.save_pretrained(tmp_path / "pack")
    on_disk = sum(file.stat().st_size for file in folder.iterdir())
    assert before == on_disk == pack.nbytes == Skillpack.from_pretrained(folder).card.bytes.total
    weight = pack.card.bytes
    assert weight.total == weight.matrices + weight.whole + weight.scales + weight.metadata
    assert weight.matrices == 64 * 3 + 5 * 32 + 64 * 3 + 3 * 128 + 2 * (128 * 2 + 2 * 64)
    assert weight.scales == 2 * (64 + 5 + 64 + 3) + 2 * 64
    assert weight.whole == 2 * 64 + 2 * 103 * 64
    pack.card.audit = {"verdict": "clean"}
    assert pack.nbytes > before


@pytest.mark.parametrize("extra", range(0, 1100, 53))
def test_the_total_is_exact_at_any_number_of_digits(tmp_path: Path, extra: int) -> None:
    pack = make_pack()
    pack.card.bytes.bf16_delta = 10**4 + extra
    pack.tensors = {NORM: torch.zeros(1)}
    pack.card.entries = {NORM: DifferenceEntry(shape=(1,))}
    pack.card.data = {"padding": "x" * (8_700 + extra)}  # the total passes from four digits to five
    folder = pack.save_pretrained(tmp_path / "pack")
    assert pack.card.bytes.total == sum(file.stat().st_size for file in folder.iterdir()) == pack.nbytes
    assert Skillpack.from_pretrained(folder).card == pack.card


def test_the_sizes_on_the_card_do_not_change_its_length() -> None:
    card = make_pack().card
    texts = {len(card.to_json()), len(card_text(card))}
    card.bytes = PackBytes(matrices=1, whole=10**6, scales=10**9, metadata=5, total=10**12)
    assert {len(card.to_json()), len(card_text(card))} == texts
    assert PackCard.model_validate_json(card.to_json()) == card


def test_the_readme_says_what_the_pack_is(tmp_path: Path) -> None:
    pack = make_pack()
    pack.card.scores = {"specialist": 0.9}
    text = (pack.save_pretrained(tmp_path / "pack") / "README.md").read_text()
    for words in ("# json-calls", "`micro`", "2 lowrank", f"{pack.card.bytes.total} bytes", "specialist", "Left out"):
        assert words in text


def test_decode_equals_a_slow_loop() -> None:
    pack = make_pack()
    parts = pack.lowrank_parts(Q)
    assert (parts.A.dtype, parts.B.dtype, parts.A.shape, parts.B.shape) == (torch.int8, torch.int8, (64, 5), (5, 64))
    assert parts.smooth is not None
    decoded = pack.decode(Q)
    for out, in_ in ((0, 0), (63, 63), (7, 30)):
        value = sum(
            float(parts.A_scale[out]) * int(parts.A[out, r]) * float(parts.B_scale[r]) * int(parts.B[r, in_])
            for r in range(5)
        ) / float(parts.smooth[in_])
        assert float(decoded[out, in_]) == pytest.approx(value, rel=1e-4, abs=1e-9)


def test_reference_forward_is_near_the_float_delta() -> None:
    pack = make_pack()
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    wanted = x @ pack.decode(Q).T
    got = reference_forward(x, pack.lowrank_parts(Q))
    assert float((got - wanted).norm() / wanted.norm()) < 0.015
    batched = reference_forward(x.view(4, 10, 64), pack.lowrank_parts(Q))
    assert torch.equal(batched.flatten(0, 1), got)


def test_reference_forward_of_nothing_is_nothing() -> None:
    pack = make_pack()
    parts = pack.lowrank_parts(DOWN)
    assert torch.equal(reference_forward(torch.zeros(2, 128), parts), torch.zeros(2, 64))
    parts.A_scale.zero_()
    assert torch.equal(reference_forward(torch.ones(2, 128), parts), torch.zeros(2, 64))


def test_lowrank_parts_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"no low-rank entry 'model\.norm\.weight'"):
        make_pack().lowrank_parts(NORM)


def test_unzip_applied_equals_decode(micro_base: Path) -> None:
    base: Base = open_base(micro_base, dtype="float32")
    pack = make_pack(base.fingerprint)
    pack.card.entries.pop("model.embed_tokens.weight")
    pack.tensors.pop("model.embed_tokens.weight")
    delta = pack.unzip()
    assert delta.names() == sorted(pack.card.entries)
    assert not any(delta.whole(name) for name in delta.names())
    tuned = delta.apply(base).model.state_dict()
    for name, weight in base.model.state_dict().items():
        if name in pack.card.entries:
            assert torch.allclose(tuned[name], weight + pack.decode(name), atol=1e-7)
            assert not torch.equal(tuned[name], weight)
        else:
            assert torch.equal(tuned[name], weight)


def test_whole_tensors_stay_whole() -> None:
    pack = make_pack()
    delta = pack.unzip()
    assert delta.whole("model.embed_tokens.weight")
    assert torch.equal(delta.tensor("model.embed_tokens.weight"), pack.tensors["model.embed_tokens.weight"])


def test_wrong_base() -> None:
    make_pack("sha256:abc").check_base("sha256:abc")
    with pytest.raises(UserError, match=r"belongs on micro \(sha256:abc"):
        make_pack("sha256:abc").check_base("sha256:def")


def test_another_config_with_the_same_weights_is_said(micro_base: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    base = open_base(micro_base, device="cpu")
    name = "model.layers.0.self_attn.q_proj.weight"
    change = {name: 0.1 * torch.randn(base.checkpoint.shape(name), generator=torch.Generator().manual_seed(0))}
    pack = zip_delta(Delta(change, base_fingerprint=base.fingerprint), base, None, ZipConfig(ratio=0.5), name="p")
    pack = Skillpack.from_pretrained(pack.save_pretrained(tmp_path / "pack"))
    assert (pack.card.schema_version, pack.card.base_config["hidden_act"]) == (5, "silu")
    other = shutil.copytree(micro_base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    rope = config["rope_parameters"] | {"rope_theta": 9900.0}
    (other / "config.json").write_text(json.dumps({**config, "rope_parameters": rope, "rms_norm_eps": 2e-6}))
    Weave.of(base, {"p": pack})
    assert "config" not in capsys.readouterr().err
    uses = {
        "loaded": lambda: Weave.of(open_base(other, device="cpu"), {"p": pack}),
        "exported": lambda: export_lora(pack, tmp_path / "lora", base=other, allow_left_out=True),
        "unzipped": lambda: made("unzip", tmp_path / "pack", "-b", other, "-o", tmp_path / "model"),
    }
    for use in uses.values():
        monkeypatch.setattr(progress, "_SAID", set())
        ran = use()
        said = " ".join((ran.err if isinstance(ran, Ran) else capsys.readouterr().err).split())
        assert "the pack 'p' was made on, and another config: rms_norm_eps is 2e-06 (then: 1e-06), rope_param" in said
        assert "rope_theta is 9900.0 (then: 10000.0)" in said
    monkeypatch.setattr(progress, "_SAID", set())
    pack.card.base_config = {}  # a pack of an older version
    Weave.of(open_base(other, device="cpu"), {"p": pack})
    assert "config" not in capsys.readouterr().err


def test_a_flipped_byte(tmp_path: Path) -> None:
    folder = make_pack().save_pretrained(tmp_path / "pack")
    data = bytearray((folder / "skillpack.safetensors").read_bytes())
    data[-10] ^= 1
    (folder / "skillpack.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"skillpack\.safetensors is damaged: its SHA-256"):
        Skillpack.from_pretrained(folder)


def test_a_cut_data_file(tmp_path: Path) -> None:
    folder = make_pack().save_pretrained(tmp_path / "pack")
    data = (folder / "skillpack.safetensors").read_bytes()
    (folder / "skillpack.safetensors").write_bytes(data[:100])
    rehash(folder)
    with pytest.raises(UserError, match="is not a safetensors file"):
        Skillpack.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("skillpack.safetensors", r"has 1099\.51 GB, and the tensors that the card names take 1\d\d\.\d kB at most"),
        ("skillpack.json", "larger than 268.4 MB"),
    ],
)
def test_a_file_of_a_terabyte_that_takes_no_room_is_not_read(tmp_path: Path, name: str, message: str) -> None:
    folder = make_pack().save_pretrained(tmp_path / "pack")
    os.truncate(folder / name, 2**40)
    for read in (Skillpack.from_pretrained, AddedPack.of):
        with pytest.raises(UserError, match=message):
            read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{Q}.B_scale"), rf"lacks the tensor '{Q}.B_scale'"),
        (lambda tensors: tensors.update({f"{Q}.A": torch.zeros(3, 3, dtype=torch.uint8)}), r"expected .*\(64, 3\)"),
        (lambda tensors: tensors.update({NORM: torch.zeros(64, dtype=torch.int8)}), "expected a float type"),
        (lambda tensors: tensors.update({"stray": torch.zeros(1)}), "holds the tensor 'stray' that no entry names"),
    ],
)
def test_tensors_that_do_not_fit_the_card(tmp_path: Path, change, message: str) -> None:
    folder = make_pack().save_pretrained(tmp_path / "pack")
    tensors = load_file(folder / "skillpack.safetensors")
    change(tensors)
    save_file(tensors, folder / "skillpack.safetensors")
    rehash(folder)
    with pytest.raises(UserError, match=message):
        Skillpack.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(schema_version=6), "has schema version 6; this skillweave reads up to 5. Upgrade"),
        (lambda card: card.pop("base"), "base: Field required"),
        (lambda card: card["entries"][Q].update(rank=0), "rank: Input should be greater than 0"),
        (lambda card: card["entries"][Q].update(kind="magic"), "magic"),
        (lambda card: card.update(name="../escape"), "name: .* cannot name a pack"),
        (lambda card: card.update(surprise=1), "surprise: Extra inputs"),
    ],
)
def test_cards_that_cannot_be_read(tmp_path: Path, change, message: str) -> None:
    folder = make_pack().save_pretrained(tmp_path / "pack")
    card = json.loads((folder / "skillpack.json").read_text())
    change(card)
    (folder / "skillpack.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=message):
        Skillpack.from_pretrained(folder)


def test_missing_files_and_cut_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist: name the folder of a saved pack"):
        Skillpack.from_pretrained(tmp_path / "nowhere")
    folder = make_pack().save_pretrained(tmp_path / "pack")
    text = (folder / "skillpack.json").read_text()
    (folder / "skillpack.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"skillpack\.json, line \d+: not valid JSON"):
        Skillpack.from_pretrained(folder)
    (folder / "skillpack.json").write_text(text)
    (folder / "skillpack.safetensors").unlink()
    with pytest.raises(UserError, match=r"skillpack\.safetensors is missing"):
        Skillpack.from_pretrained(folder)


def test_a_pack_without_entries(tmp_path: Path) -> None:
    card = PackCard(name="empty", base=BaseRef(ref="b", fingerprint="f"), codec=Codec(name="skillzip"))
    folder = Skillpack(card, {}).save_pretrained(tmp_path / "pack")
    assert Skillpack.from_pretrained(folder).unzip().names() == []
