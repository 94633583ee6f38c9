"""Encode the tensors of a pack into the parts of its coded file, and decode them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save

from skillweave.base.safetensors_io import tensor_bytes
from skillweave.errors import UserError
from skillweave.pack.coded_file import (
    REMAKE,
    CodedParts,
    ReadParts,
    coded_names,
    coded_shapes,
    coded_tensors,
    most_inflated,
)
from skillweave.pack.entropy import Codes, decode, encode
from skillweave.pack.schema import PackCard


def encode_parts(card: PackCard, tensors: Mapping[str, torch.Tensor]) -> CodedParts:
    """Return the parts of the file for these tensors, which must be those that the card's entries need."""
    names = coded_names(card)
    scales = b"".join(tensor_bytes(tensors[f"{name}.B_scale"]) for name in names)
    own = coded_tensors(card)
    plain = {key: tensor.contiguous() for key, tensor in tensors.items() if key not in own}
    return CodedParts(*encode(*_codes(names, tensors)), _deflated(scales), _deflated(save(plain)))


def _codes(names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> tuple[Codes, list[int]]:
    """Return the codes of these entries in the order of the file, and the lengths of their rows."""
    lengths: list[int] = []
    parts = [torch.zeros(0, dtype=torch.int8)]
    for name in names:
        left, right = tensors[f"{name}.A"].cpu(), tensors[f"{name}.B"].cpu()
        lengths += [left.shape[0]] * left.shape[1] + [right.shape[1]] * right.shape[0]
        parts += [left.T.flatten(), right.flatten()]
    return torch.cat(parts).numpy(), lengths


def decode_parts(parts: ReadParts, card: PackCard, file: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a file whose parts :func:`read_parts` gave and :func:`check_counts` passed.

    Raises :class:`UserError` for damaged parts.
    """
    try:
        tensors = load(parts.plain)
        shapes = {name: coded_shapes(card, name) for name in coded_names(card)}
        lengths = [n for left, right in shapes.values() for n in (left[0],) * left[1] + (right[1],) * right[0]]
        codes = decode(parts.tables, parts.codes, lengths)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}. {REMAKE}") from error
    scales = bytearray(parts.scales)
    every = torch.frombuffer(scales, dtype=torch.bfloat16) if scales else torch.zeros(0).bfloat16()
    at = rank = 0
    for name, (left, right) in shapes.items():
        middle, end = at + math.prod(left), at + math.prod(left) + math.prod(right)
        tensors[f"{name}.A"] = torch.from_numpy(codes[at:middle].reshape(left[1], left[0]).T.copy())
        tensors[f"{name}.B"] = torch.from_numpy(codes[middle:end].reshape(right).copy())
        tensors[f"{name}.B_scale"] = every[rank : rank + right[0]].clone()
        at, rank = end, rank + right[0]
    return tensors


def _deflated(data: bytes) -> bytes:
    """Return the bytes of even places, then those of odd ones, compressed; not at all if they shrink too much."""
    planes = data[0::2] + data[1::2]
    small = zlib.compress(planes, 9)
    return small if len(data) <= most_inflated(small) else zlib.compress(planes, 0)
