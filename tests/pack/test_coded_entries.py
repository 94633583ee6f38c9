"""Entries of codes with group scales: what a stranger may write into them is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.small_pack import put, rehash
from skillweave.cli.contents import show_pack
from skillweave.errors import UserError
from skillweave.pack import (
    BaseRef,
    Codec,
    GroupedEntry,
    MixedEntry,
    PackCard,
    Skillpack,
    pack_codes,
    quantise_groups,
    quantise_signs,
    read_stored,
)

ENTRIES = {
    "signs": GroupedEntry(shape=(6, 13), bits=1, rank=2),
    "three": GroupedEntry(shape=(6, 13), bits=3, group_size=4),
    "four": GroupedEntry(shape=(13, 6), bits=4, group_size=8, transposed=True),
    "eight": GroupedEntry(shape=(2, 3, 5), bits=8, group_size=5, stacked=True),
    "mixed": MixedEntry(shape=(5, 7), bands=[(8, 1), (3, 2), (2, 3)], group_size=4),
    "mixeds": MixedEntry(shape=(2, 5, 7), bands=[(4, 3)], group_size=16, stacked=True),
}


def make_pack() -> Skillpack:
    """A pack with every form of the two kinds."""
    source = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def grouped(rows: int, columns: int, bits: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = quantise_groups(torch.randn(rows, columns, generator=source), bits, size)
        return pack_codes(codes, bits), scale

    codes, tensors["signs.scale"] = quantise_signs(torch.randn(6, 13, generator=source))
    tensors["signs.codes"] = pack_codes(codes, 1)
    tensors["signs.A"] = torch.randn(6, 2, generator=source).bfloat16()
    tensors["signs.B"] = torch.randn(2, 13, generator=source).bfloat16()
    for name, rows, columns, bits, size in (("three", 6, 13, 3, 4), ("four", 6, 13, 4, 8), ("eight", 6, 5, 8, 5)):
        tensors[f"{name}.codes"], tensors[f"{name}.scale"] = grouped(rows, columns, bits, size)
    for name, matrices in (("mixed", 1), ("mixeds", 2)):
        entry = ENTRIES[name]
        rows_of = [[grouped(n, length, bits, entry.group_size) for bits, n, length in entry.blocks()]] * matrices
        for part, ending in enumerate(("codes", "scale")):
            flat = [torch.cat([block[part].flatten() for block in blocks]) for blocks in rows_of]
            tensors[f"{name}.{ending}"] = torch.stack(flat)
    card = PackCard(name="coded", base=BaseRef(ref="b", fingerprint="f"), codec=Codec(name="x"), entries=ENTRIES)
    return Skillpack(card, tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_pack().save_pretrained(tmp_path / "pack")


def test_all_forms_are_read_back_as_they_were(folder: Path) -> None:
    made, pack = make_pack(), Skillpack.from_pretrained(folder)
    assert pack.card.entries == ENTRIES
    assert pack.card.schema_version == 2
    for name, entry in ENTRIES.items():
        assert pack.decode(name).shape == entry.shape
        assert torch.equal(pack.decode(name), made.decode(name))
    assert torch.equal(pack.decode("mixeds")[0], pack.decode("mixeds")[1])
    sizes = pack.card.bytes
    coded = [t for key, t in pack.tensors.items() if key.endswith((".codes", ".A", ".B"))]
    assert sizes.matrices == sum(tensor.nbytes for tensor in coded)
    assert sizes.scales == sum(t.nbytes for key, t in pack.tensors.items() if key.endswith(".scale"))


def test_the_bands_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_pack(make_pack().card, tmp_path, tensors=True)
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["", "mixed", "mixed", "5x7", "1 + 2 + 3", "8 + 3 + 2", ""] in rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("eight.codes", (0, 0), 0x80), r"eight\.codes' holds the code -128"),
        (put("four.codes", (0, 0), 0x08), r"four\.codes' holds the code -8"),
        (put("four.codes", (0, 1), 0x80), r"four\.codes' holds the code -8"),
        (put("mixed.codes", (0, 0), 0x80), r"mixed\.codes' holds the code -128"),
        (put("mixeds.codes", (1, 0), 0x88), r"mixeds\.codes' holds the code -8"),
        (put("signs.codes", (5, 1), 0x20), "bits after the last of the 13 codes"),
        (put("three.codes", (0, 4), 0x80), "bits after the last of the 13 codes"),
        (put("four.codes", (2, 6), 0x10), "bits after the last of the 13 codes"),
        (put("mixed.codes", (0, -1), 0xC0), "bits after the last of the 7 codes"),
        (put("signs.scale", 0, -1.0), r"signs\.scale' holds the scale -1; scales are not negative"),
        (put("signs.scale", 0, float("nan")), r"signs\.scale' holds NaN"),
        (put("signs.scale", 0, 1e30), r"signs\.scale' holds the scale 1e\+30; scales are at most 65504"),
        (put("three.scale", (1, 1), float("inf")), r"three\.scale' holds NaN or infinity"),
        (put("mixed.scale", (0, 3), 3e38), r"mixed\.scale' holds the scale 3e\+38"),
        (put("signs.A", (0, 0), float("nan")), r"signs\.A' holds NaN"),
    ],
)
def test_numbers_that_no_codec_writes(folder: Path, change: Callable, message: str) -> None:
    file = folder / "skillpack.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    rehash(folder)
    with pytest.raises(UserError, match=rf"skillpack\.safetensors: the tensor.*{message}"):
        Skillpack.from_pretrained(folder)


CARDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "bits 5": ("three", {"bits": 5}, "bits"),
    "bits true": ("signs", {"bits": True}, "bits: .*valid integer"),
    "other bits": ("three", {"bits": 2}, r"three\.codes' is uint8"),
    "no group size": ("three", {"group_size": None}, r"three\.scale' is bfloat16"),
    "group size 0": ("three", {"group_size": 0}, "group_size"),
    "another group size": ("three", {"group_size": 13}, r"three\.scale' is bfloat16"),
    "an endless group size": ("three", {"group_size": 2**60}, "group_size"),
    "rank below 0": ("signs", {"rank": -1}, "rank"),
    "rank 0": ("signs", {"rank": 0}, r"holds the tensor 'signs\.[AB]' that no entry names"),
    "a longer rank": ("signs", {"rank": 3}, r"signs\.A' is bfloat16"),
    "one axis": ("three", {"shape": [78]}, "shape"),
    "a stack of two axes": ("three", {"stacked": True}, "three or more axes"),
    "a transposed stack": ("eight", {"transposed": True}, "not transposed"),
    "no stack": ("eight", {"stacked": False}, r"eight\.codes' is uint8"),
    "no bands": ("mixed", {"bands": []}, "bands"),
    "too many bands": ("mixed", {"bands": [[2, 1]] * 9}, "bands"),
    "a band of 5 bits": ("mixed", {"bands": [[5, 6]]}, "bands"),
    "a band of nothing": ("mixed", {"bands": [[8, 0]]}, "bands"),
    "a band of one number": ("mixed", {"bands": [[8]]}, "bands"),
    "other bands": ("mixed", {"bands": [[8, 2], [3, 2], [2, 3]]}, r"mixed\.codes' is uint8"),
    "huge bands": ("mixed", {"bands": [[8, 2**47]]}, r"mixed\.codes' is uint8"),
    "an unknown key": ("mixed", {"zero": 1}, "zero"),
    "a kind of a later version": ("mixed", {"kind": "curled"}, "curled|kind"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "change", "message"), CARDS.values(), ids=CARDS.keys())
def test_cards_are_refused_by_key(folder: Path, entry: str, change: dict[str, Any], message: str) -> None:
    file = folder / "skillpack.json"
    card = json.loads(file.read_text())
    card["entries"][entry].update(change)
    file.write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"(?s)skillpack\.(json|safetensors).*({message})"):
        read_stored(folder)
