"""The coded file: round trips against a slow reader, damage, bombs, and the short form of the card."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.plain_coded import plain_card, plain_coded
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.pack import (
    BaseRef,
    Codec,
    DifferenceEntry,
    LowRankEntry,
    PackCard,
    Skillpack,
    StackedEntry,
    read_stored,
    reference_forward,
)
from skillweave.pack.layers import expanded, joined

GROUP = "model.layers.{}.self_attn:q_proj+k_proj"


def coded_pack() -> Skillpack:
    """Return a pack with coded entries of every kind, one with a smoothing, and a difference."""
    source = torch.Generator().manual_seed(3)
    entries: dict[str, LowRankEntry | StackedEntry | DifferenceEntry] = {
        f"model.layers.{layer}.self_attn.{part}_proj.weight": LowRankEntry(
            shape=(24, 17), rank=rank, bits=8, scales="rank", group=GROUP.format(layer), smooth=layer == 1
        )
        for layer, part, rank in ((0, "q", 3), (0, "k", 1), (1, "q", 5), (1, "k", 2), (12, "q", 4))
    }
    entries["turned"] = LowRankEntry(shape=(9, 30), rank=2, bits=8, scales="rank", group="t", transposed=True)
    entries["experts"] = StackedEntry(shape=(3, 10, 12), ranks=[2, 0, 3], bits=8, scales="rank")
    entries["norm.weight"] = DifferenceEntry(shape=(16,))
    tensors = {"norm.weight": torch.randn(16, generator=source).bfloat16()}
    tensors[f"{GROUP.format(1)}.smooth"] = torch.rand(17, generator=source).half() + 0.5
    for name, entry in entries.items():
        if isinstance(entry, DifferenceEntry):
            continue
        out, in_ = entry.shape[-2:] if isinstance(entry, StackedEntry) else entry.matrix
        rank = sum(entry.ranks) if isinstance(entry, StackedEntry) else entry.rank
        for part, shape in (("A", (out, rank)), ("B", (rank, in_))):
            tensors[f"{name}.{part}"] = (2 * torch.randn(shape, generator=source)).round().to(torch.int8)
        tensors[f"{name}.B_scale"] = torch.rand(rank, generator=source).bfloat16()
    card = PackCard(
        name="coded", base=BaseRef(ref="b", fingerprint="sha256:" + "0" * 64), codec=Codec(name="skillzip"),
        entries=entries,
    )  # fmt: skip
    return Skillpack(card, tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coded_pack().save_pretrained(tmp_path / "pack")


def test_what_is_saved_is_read_also_by_a_slow_reader(folder: Path, tmp_path: Path) -> None:
    pack, read = coded_pack(), Skillpack.from_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "skillpack.coded", "skillpack.json"]
    assert read.card.schema_version == 3
    assert read.card.entries == pack.card.entries
    plain = plain_coded(folder / "skillpack.coded", plain_card(folder)["entries"])
    for tensors in (read.tensors, plain):
        assert set(tensors) == set(pack.tensors)
        assert all(torch.equal(tensors[key], tensor) for key, tensor in pack.tensors.items())
    assert read.digest == pack.digest
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert pack.nbytes == read.nbytes == read.card.bytes.total == size
    again = read.save_pretrained(tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_one_scale_for_each_rank(folder: Path) -> None:
    pack = Skillpack.from_pretrained(folder)
    name = "model.layers.1.self_attn.q_proj.weight"
    left, right, scale = (pack.tensors[f"{name}.{part}"].double() for part in ("A", "B", "B_scale"))
    wanted = left @ torch.diag(scale) @ right / pack.tensors[f"{GROUP.format(1)}.smooth"].double()
    assert torch.allclose(pack.decode(name).double(), wanted, rtol=1e-5, atol=1e-6)
    x = torch.randn(40, 17)
    got = reference_forward(x, pack.lowrank_parts(name)).double()
    assert float((got - x.double() @ wanted.T).norm() / (x.double() @ wanted.T).norm()) < 0.02
    assert pack.decode("turned").shape == (9, 30)
    assert not bool(pack.decode("experts")[1].any())


def test_layers_of_a_card_are_its_entries(folder: Path) -> None:
    card = json.loads((folder / "skillpack.json").read_text())
    line = card["layers"]["model.layers.*.self_attn.q_proj.weight"]
    assert line["ranks"] == {"0": 3, "12": 4}  # layer 1 has a smoothing, so it is no such line
    assert line["group"] == GROUP.format("*")
    assert set(card["entries"]) >= {"model.layers.1.self_attn.q_proj.weight", "turned", "experts", "norm.weight"}


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"a.0.b": {"rank": 2, "group": "a.0:b"}, "a.1.b": {"rank": 2, "group": "a.1:b"}},
        {"a.0.b": {"rank": 2, "group": "other.1:b"}, "a.1.b": {"rank": 3, "group": "a.1:b"}},
        {"a.0.b.1.c": {"rank": 1}, "a.0.b.2.c": {"rank": 2}, "a.10.b.1.c": {"rank": 3}},
        {"a*.0.b": {"rank": 1}, "0.a": {"rank": 1}, "a.0": {"rank": 1}, "a.01.b": {"rank": 1}},
        {"a.1.b": {"rank": 1, "group": "a.11:b"}, "a.11.b": {"rank": 1, "group": "a.1:b"}},
    ],
)
def test_joining_loses_nothing(entries: dict) -> None:
    layers, alone = joined(entries)
    assert expanded(layers) | alone == entries


def edit(folder: Path, change: Callable[[bytes], bytes]) -> None:
    file = folder / "skillpack.coded"
    file.write_bytes(change(file.read_bytes()))
    card = json.loads((folder / "skillpack.json").read_text())
    card["files"]["skillpack.coded"] = sha256_file(file)
    (folder / "skillpack.json").write_text(json.dumps(card))


def with_part(data: bytes, index: int, change: Callable[[bytes], bytes]) -> bytes:
    lengths = [int.from_bytes(data[at : at + 8], "little") for at in range(8, 40, 8)]
    ends = [40 + sum(lengths[: at + 1]) for at in range(4)]
    parts = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    parts[index] = change(parts[index])
    return data[:8] + b"".join(len(part).to_bytes(8, "little") for part in parts) + b"".join(parts)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:30],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"x" + data[1:],
        lambda data: data[:8] + b"\xff" * 8 + data[16:],
        lambda data: with_part(data, 0, lambda part: part[:-2]),
        lambda data: with_part(data, 1, lambda part: part[:-2]),
        lambda data: with_part(data, 1, lambda part: part + part),
        lambda data: with_part(data, 1, lambda part: part[:20] + b"\0\1" + part[22:]),
        lambda data: with_part(data, 2, lambda part: zlib.compress(b"1")),
        lambda data: with_part(data, 2, lambda part: zlib.compress(bytes(10**7))),
        lambda data: with_part(data, 3, lambda part: zlib.compress(bytes(10**8))),
        lambda data: with_part(data, 3, lambda part: part + b"more"),
        lambda data: with_part(data, 3, lambda part: zlib.compress(b"no safetensors")),
    ],
)
def test_damaged_files_and_bombs_are_refused(folder: Path, change: Callable[[bytes], bytes]) -> None:
    edit(folder, change)
    with pytest.raises(UserError, match=r"skillpack\.coded is damaged.*Copy or make the pack again"):
        Skillpack.from_pretrained(folder)


CARDS: dict[str, tuple[Callable[[dict], object], str]] = {
    "more codes than the file can hold": (
        lambda c: c["entries"]["turned"].update(shape=[2**40, 2**40]),
        "cannot hold",
    ),
    "another rank": (
        lambda c: c["layers"]["model.layers.*.self_attn.q_proj.weight"]["ranks"].update({"0": 2}), "damaged",
    ),
    "4 bits": (lambda c: c["entries"]["turned"].update(bits=4), "have 8 bits"),
    "scales by row": (lambda c: c["entries"]["turned"].update(scales="row"), "holds more than"),
    "both kinds of file": (lambda c: c["files"].update({"skillpack.safetensors": "0" * 64}), "is no file of a pack"),
    "a layer twice": (lambda c: c["entries"].update({"model.layers.0.self_attn.q_proj.weight": {}}), "'layers' gives"),
    "no star": (lambda c: c["layers"].update(x={"ranks": {"0": 1}}), r"one '\*'"),
    "no number": (lambda c: c["layers"].update({"a.*.b": {"ranks": {"../x": 1}}}), "no number of a layer"),
    "a long text": (lambda c: c["layers"].update({"*" + "x" * 2000: {"ranks": {"0": 1}}}), "characters"),
    "no object": (lambda c: c.update(layers=[1]), "expected an object"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CARDS.values(), ids=CARDS.keys())
def test_cards_that_do_not_fit_are_refused(folder: Path, change: Callable[[dict], object], message: str) -> None:
    file = folder / "skillpack.json"
    card = json.loads(file.read_text())
    change(card)
    file.write_text(json.dumps(card))
    for read in (Skillpack.from_pretrained, read_stored):  # the second is what `skillweave inspect` reads with
        with pytest.raises(UserError, match=rf"(?s){message}"):
            read(folder)


def test_inspect_reads_no_codes(folder: Path) -> None:
    card, data, _ = read_stored(folder)
    assert data.name == "skillpack.coded"
    assert card.entries == coded_pack().card.entries
