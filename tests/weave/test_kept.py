"""Copies of prepared packs on disk: a pack comes back equal, and never from bytes that are not those that were kept."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from helpers.weave_packs import random_pack
from skillweave.base import Base, open_base
from skillweave.errors import UserError
from skillweave.pack import FactorsEntry, Skillpack
from skillweave.weave import Weave, kept
from skillweave.weave.kept import KeptPacks


@pytest.fixture(scope="module")
def base(micro_base) -> Base:
    return open_base(micro_base)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    notes: list[str] = []
    monkeypatch.setattr(kept, "say_once", notes.append)
    return notes


def of_every_kind(base: Base, name: str, seed: int) -> Skillpack:
    """Integer factors, float factors, an embedding's change, a tuned norm, and smoothing."""
    pack = random_pack(
        base.model, base.fingerprint, name=name, seed=seed, bits=8, difference=["model.norm.weight"],
        only=("q_proj", "up_proj", "down_proj"),
    )  # fmt: skip
    source = torch.Generator().manual_seed(seed)
    for key in ("model.layers.0.self_attn.o_proj.weight", "model.embed_tokens.weight"):
        shape = tuple(base.model.state_dict()[key].shape)
        pack.card.entries[key] = FactorsEntry(shape=shape, rank=2)
        pack.tensors[f"{key}.A"] = (torch.randn(shape[0], 2, generator=source) * 0.1).bfloat16()
        pack.tensors[f"{key}.B"] = (torch.randn(2, shape[1], generator=source) * 0.1).bfloat16()
    return Skillpack(pack.card, pack.tensors)


def woven(base: Base, folder, unpacked: int | None = None) -> Weave:
    packs = {name: of_every_kind(base, name, seed) for seed, name in enumerate(("one", "two"))}
    Weave.write(folder, base, packs)
    weave = Weave.from_pretrained(folder, base=base, packs=[], unpacked_packs=unpacked)
    weave.packed_model.watch()
    return weave


@torch.no_grad()
def answer(weave: Weave, name: str) -> torch.Tensor:
    with weave.packed_model.rows([name, None]):
        return weave.base.model(torch.arange(5, 25).view(2, 10)).logits


@pytest.mark.parametrize("unpacked", [None, 1])
def test_a_pack_comes_back_equal_without_being_decoded(base, tmp_path, unpacked, monkeypatch) -> None:
    weave = woven(base, tmp_path / "weave", unpacked)
    wanted, sizes = {}, {}
    for name in ("one", "two"):
        weave.put(weave.shelf.read(name, keep=True))
        wanted[name], sizes[name] = answer(weave, name), weave.packed_model.needed_bytes()
        weave.unload(name)
    monkeypatch.setattr(Skillpack, "from_pretrained", None)
    for name in ("two", "one", "two"):
        read = weave.shelf.read(name)
        assert all(not tensor.is_meta for tensor in tensors_of(read))
        weave.put(read)
        assert torch.equal(answer(weave, name), wanted[name])
        assert weave.packed_model.needed_bytes() == sizes[name]
        weave.unload(name)


def tensors_of(read) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    read.ready.with_tensors(lambda tensor: found.append(tensor) or tensor)
    return found


def test_a_damaged_copy_is_not_used_and_said(base, tmp_path, said) -> None:
    weave = woven(base, tmp_path / "weave")
    weave.put(weave.shelf.read("one", keep=True))
    wanted = answer(weave, "one")
    weave.unload("one")
    copy = weave.shelf._kept._copies["one"]
    file = weave.shelf._kept._file.fileno()
    byte = os.pread(file, 1, copy.at + 100)
    os.pwrite(file, bytes([byte[0] ^ 1]), copy.at + 100)
    weave.load("one")
    assert "was damaged" in said[0]
    assert torch.equal(answer(weave, "one"), wanted)
    weave.unload("one")
    weave.shelf.read("one", keep=True)
    os.ftruncate(file, 10)
    assert all(
        torch.isfinite(tensor).all() for tensor in tensors_of(weave.shelf.read("one")) if tensor.is_floating_point()
    )
    assert len(said) == 2


@pytest.mark.parametrize("part", ["skillpack.json", "skillpack.safetensors"])
def test_a_pack_whose_files_changed_is_refused_as_ever(base, tmp_path, part) -> None:
    weave = woven(base, tmp_path / "weave")
    weave.shelf.read("one", keep=True)
    file = tmp_path / "weave" / "packs" / "one" / part
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: its SHA-256"):
        weave.shelf.read("one")
    data[-3] ^= 1
    file.write_bytes(data)
    weave.put(weave.shelf.read("one"))
    assert weave.loaded == ["one"]


def test_a_disk_that_takes_no_copy_is_said_and_the_pack_loads(base, tmp_path, said, monkeypatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "file"))
    weave = woven(base, tmp_path / "weave")
    weave.put(weave.shelf.read("one", keep=True))
    assert "no copies of packs can be kept" in said[0]
    weave.unload("one")
    weave.load("one")


def test_packs_of_other_kinds_and_packs_in_memory_have_no_copy(base, tmp_path) -> None:
    weave = woven(base, tmp_path / "weave")
    read = weave.shelf.read("one")
    copies = KeptPacks()
    for other in (
        replace(read, own_tokenizer=True),
        replace(read, files={}),
        replace(read, ready=replace(read.ready, exchanged=[None])),
        replace(read, ready=replace(read.ready, tokens=object())),
    ):
        copies.keep(other)
        assert copies.files("one") is None
    copies.keep(read)
    assert copies.files("one") == read.files


def test_the_room_of_a_forgotten_pack_is_used_again_and_the_file_has_no_name(base, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    weave = woven(base, tmp_path / "weave")
    reads = {name: weave.shelf.read(name) for name in ("one", "two")}
    copies = KeptPacks()
    for _ in range(3):
        for read in reads.values():
            copies.keep(read)
    size = os.fstat(copies._file.fileno()).st_size
    assert size == sum(copy.size for copy in copies._copies.values())
    assert list((tmp_path / "cache").iterdir()) == []
    copies.drop("one")
    copies.drop("one")
    assert copies.files("one") is None
    for name, read in reads.items():
        copies.keep(read)
        pairs = zip(tensors_of(copies.read(name)), tensors_of(read), strict=True)
        assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in pairs)
