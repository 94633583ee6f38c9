"""A base is known by its fingerprint: a hash of its tensors, the same however they are cut into files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skillweave.base.cache import cache_folder
from skillweave.base.checkpoint import Checkpoint, weight_files
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.files.read import read_json
from skillweave.files.write import write_json

_SLOW = 0.3  # seconds; what hashes faster than this is not worth a file in the cache
_SETTLED = 2.0  # seconds; a younger file could be written again within one tick of its time stamp
_VERSION = 1


def fingerprint(source: str | Path | nn.Module) -> str:
    """``sha256:<hex>`` over the (name, dtype, shape, bytes) of all tensors in the order of their names.

    Reads one tensor at a time. Tied duplicates count once, so a model has one fingerprint whether its files hold
    the copies or not. That of a folder is remembered in the cache under the path, size and modification time of
    its files, where computing it took longer than 0.3 s.
    """
    if isinstance(source, nn.Module):
        return hash_tensors(Checkpoint(source))
    folder = Path(source)
    state = _file_state(folder)
    known = cache_folder() / "fingerprints" / f"{digest([_VERSION, state])}.json"
    if known.is_file():
        # A damaged note of the cache is no reason to fail: it is computed and written again.
        with contextlib.suppress(UserError, KeyError, TypeError):
            return read_json(known)["fingerprint"]
    start = time.monotonic()
    result = hash_tensors(Checkpoint(folder))
    settled = all(time.time() - modified / 1e9 > _SETTLED for _, _, modified in state)
    if time.monotonic() - start > _SLOW and settled:
        # A home that cannot be written costs time at the next run, nothing else.
        with contextlib.suppress(UserError, OSError):
            write_json(known, {"fingerprint": result, "files": state})
    return result


def _file_state(folder: Path) -> list[list[Any]]:
    """[path, bytes, modification time in ns] of the config and the weights."""
    files = weight_files(folder) if (folder / "config.json").is_file() else []
    return (
        [
            [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
            for file in [folder / "config.json", *files]
        ]
        if files
        else []
    )


def hash_tensors(checkpoint: Checkpoint) -> str:
    sha = hashlib.sha256()
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        sha.update(json.dumps(header).encode() + b"\n")
        sha.update(tensor_bytes(tensor))
    return f"sha256:{sha.hexdigest()}"


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as safetensors lays them out: row-major, little-endian; no copy where it lies so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
