"""Write safetensors files tensor by tensor, so that a model of any size needs the memory of its largest tensor.

The library's ``save_file`` wants all tensors of a file at once. The format is short enough to stream: 8 bytes of
length, a JSON header with offsets, then the bytes in order (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from skillweave.base.fingerprint import tensor_bytes
from skillweave.base.tensors import DTYPES, Spec

SHARD_BYTES = 5 * 10**9
"""The customary bound of one file of a Hugging Face model."""

_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def spec_bytes(spec: Spec) -> int:
    """Bytes of a tensor of this shape and dtype."""
    return torch.Size(spec[0]).numel() * spec[1].itemsize


def plan_files(specs: Mapping[str, Spec], stem: str, limit: int = SHARD_BYTES) -> dict[str, list[str]]:
    """File name -> names of its tensors: ``stem.safetensors``, or shards of at most ``limit`` bytes.

    A tensor larger than ``limit`` gets a file of its own.
    """
    groups: list[list[str]] = [[]]
    room = limit
    for name in sorted(specs):
        size = spec_bytes(specs[name])
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{at:05d}-of-{len(groups):05d}.safetensors": names for at, names in enumerate(groups, 1)}


def write_stream(path: Path, specs: Mapping[str, Spec], read: Callable[[str], torch.Tensor]) -> str:
    """Write one safetensors file, calling ``read(name)`` for each tensor once; return the file's SHA-256 in hex.

    ``read`` must give the shape and dtype that ``specs`` announces. Not atomic: call it inside ``atomic_folder``.
    """
    # Wide types first keep every tensor aligned to its element size, as the library does.
    order = sorted(specs, key=lambda name: (-specs[name][1].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        shape, dtype = specs[name]
        start, end = end, end + spec_bytes(specs[name])
        header[name] = {"dtype": _TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sha = hashlib.sha256()
    with open(path, "wb") as file:
        head = len(text).to_bytes(8, "little") + text
        file.write(head)
        sha.update(head)
        for name in order:
            tensor = read(name)
            if (tuple(tensor.shape), tensor.dtype) != specs[name]:
                raise ValueError(f"{name}: announced {specs[name]}, got {tensor.dtype} {tuple(tensor.shape)}")
            piece = tensor_bytes(tensor)
            file.write(piece)
            sha.update(piece)
    return sha.hexdigest()
