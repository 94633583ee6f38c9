"""A small pack with one entry of most kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from skillweave.files.hashes import sha256_file
from skillweave.pack import (
    BaseRef,
    Codec,
    DifferenceEntry,
    FactorsEntry,
    LowRankEntry,
    PackCard,
    Skillpack,
    WholeEntry,
    pack_int4,
    quantise_rows,
)

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def make_pack(fingerprint: str = "sha256:" + "0" * 64) -> Skillpack:
    """Return a pack with two ``lowrank`` entries and one ``factors``, ``difference`` and ``whole`` entry each.

    The shapes are those of the micro model (hidden 64, intermediate 128).
    """
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, (out, in_), rank, bits in ((Q, (64, 64), 5, 4), (DOWN, (64, 128), 3, 8)):
        for part, shape in (("A", (out, rank)), ("B", (rank, in_))):
            codes, scale = quantise_rows(torch.randn(shape, generator=generator) * 0.01, bits)
            tensors[f"{name}.{part}"] = pack_int4(codes) if bits == 4 else codes
            tensors[f"{name}.{part}_scale"] = scale
    tensors["model.layers.0.self_attn:q_proj.smooth"] = torch.rand(64, generator=generator).half() + 0.5
    tensors[f"{UP}.A"] = torch.randn(128, 2, generator=generator).bfloat16()
    tensors[f"{UP}.B"] = torch.randn(2, 64, generator=generator).bfloat16()
    tensors[NORM] = torch.full((64,), 0.25).bfloat16()
    tensors["model.embed_tokens.weight"] = torch.randn(103, 64, generator=generator).bfloat16()
    card = PackCard(
        name="json-calls",
        base=BaseRef(ref="micro", fingerprint=fingerprint),
        method="specialise",
        codec=Codec(name="skillzip", settings={"bits": 4}),
        left_out=["model.layers.0.input_layernorm.weight"],
        entries={
            Q: LowRankEntry(shape=(64, 64), rank=5, bits=4, group="model.layers.0.self_attn:q_proj", smooth=True),
            DOWN: LowRankEntry(shape=(64, 128), rank=3, bits=8, group="model.layers.0.mlp:down_proj"),
            UP: FactorsEntry(shape=(128, 64), rank=2),
            NORM: DifferenceEntry(shape=(64,)),
            "model.embed_tokens.weight": WholeEntry(shape=(103, 64)),
        },
    )
    return Skillpack(card, tensors)


def rehash(folder: Path) -> None:
    """Write the hash of the data file into the card, so that checks after that of the hash are reached."""
    card = json.loads((folder / "skillpack.json").read_text())
    card["files"]["skillpack.safetensors"] = sha256_file(folder / "skillpack.safetensors")
    (folder / "skillpack.json").write_text(json.dumps(card))


def put(name: str, at: Any, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    """Return a function that changes one number of a tensor."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][at] = value

    return change
