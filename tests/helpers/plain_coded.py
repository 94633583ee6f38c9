"""Read the card and the tensors of a pack by the definition of their formats alone: with loops, and no code of ours."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load


def plain_card(folder: Path) -> dict[str, Any]:
    """Return the card with every entry on its own, also those that ``layers`` gives."""
    card = json.loads((folder / "skillpack.json").read_text(encoding="utf-8-sig"))
    for pattern, line in card.pop("layers", {}).items():
        for number, rank in line["ranks"].items():
            entry = {key: value for key, value in line.items() if key != "ranks"}
            if "group" in entry:
                entry["group"] = entry["group"].replace("*", number)
            card["entries"][pattern.replace("*", number)] = {**entry, "rank": rank}
    return card


def plain_coded(file: Path, entries: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``skillpack.coded``; ``entries`` are those of :func:`plain_card`."""
    data = file.read_bytes()
    lengths = [int.from_bytes(data[at : at + 8], "little") for at in range(8, 40, 8)]
    ends = [40 + sum(lengths[: at + 1]) for at in range(4)]
    tables, codes, scales, plain = (data[end - length : end] for end, length in zip(ends, lengths, strict=True))
    tensors = load(_merged(zlib.decompress(plain)))
    coded = sorted(name for name, entry in entries.items() if entry.get("scales") == "rank")
    shapes = [_shape(entries[name]) for name in coded]
    rows = [length for out, in_, rank in shapes for length in [out] * rank + [in_] * rank]
    numbers = _numbers(zlib.decompress(tables), codes, rows)
    scale = torch.frombuffer(bytearray(_merged(zlib.decompress(scales))) or bytearray(2), dtype=torch.bfloat16)
    at = used = 0
    for name, (out, in_, rank) in zip(coded, shapes, strict=True):
        left = torch.tensor(numbers[at : at + out * rank], dtype=torch.int8).reshape(rank, out)
        right = torch.tensor(numbers[at + out * rank : at + (out + in_) * rank], dtype=torch.int8)
        tensors |= {f"{name}.A": left.T.contiguous(), f"{name}.B": right.reshape(rank, in_)}
        tensors[f"{name}.B_scale"] = scale[used : used + rank].clone()
        at, used = at + (out + in_) * rank, used + rank
    return tensors


def _shape(entry: dict[str, Any]) -> tuple[int, int, int]:
    """Return (out, in, rank) of an entry; a stack has the sum of its ranks."""
    if entry["kind"] == "stacked":
        return entry["shape"][-2], entry["shape"][-1], sum(entry["ranks"])
    out, in_ = entry["shape"][0], math.prod(entry["shape"][1:])
    return (in_, out, entry["rank"]) if entry.get("transposed") else (out, in_, entry["rank"])


def _merged(planes: bytes) -> bytes:
    half = (len(planes) + 1) // 2
    return bytes(planes[at // 2] if at % 2 == 0 else planes[half + at // 2] for at in range(len(planes)))


def _numbers(head: bytes, body: bytes, rows: list[int]) -> list[int]:
    """Return the codes of all rows, one state at a time."""
    tables, at = [], 1
    for _ in range(head[0]):
        largest = head[at]
        tables.append([int.from_bytes(head[at + 1 + 2 * k : at + 3 + 2 * k], "little") for k in range(2 * largest + 1)])
        at += 1 + 2 * len(tables[-1])
    classes = [head[at + row] for row, length in enumerate(rows) for _ in range(length)]
    lanes = max(1, math.isqrt(len(classes)) // 8)
    states = [int.from_bytes(body[4 * lane : 4 * lane + 4], "little") for lane in range(lanes)]
    place, found = 4 * lanes, []
    for index, own in enumerate(classes):
        state = states[index % lanes]
        slot, start, code = state % 2**14, 0, 0
        while slot >= start + tables[own][code]:
            start, code = start + tables[own][code], code + 1
        found.append(code - len(tables[own]) // 2)
        state = tables[own][code] * (state // 2**14) + slot - start
        if state < 2**16:
            state, place = state * 2**16 + int.from_bytes(body[place : place + 2], "little"), place + 2
        states[index % lanes] = state
    assert place == len(body)
    return found
