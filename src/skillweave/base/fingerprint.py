"""Compute the fingerprint of a base: a hash of its tensors, the same however they are split into files."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from torch import nn

from skillweave.base import remembered
from skillweave.base.checkpoint import Checkpoint
from skillweave.base.folder import find_model
from skillweave.base.safetensors_io import tensor_bytes

_SLOW = 0.3  # seconds; a fingerprint that takes less is not worth a file in the cache


def fingerprint(source: str | Path | nn.Module | Checkpoint) -> str:
    """``sha256:<hex>`` over the (name, dtype, shape, bytes) of all tensors in the order of their names.

    One tensor is read at a time. Tied duplicates count once, so a model has one fingerprint whether its files hold the
    copies or not. If computing it for a folder took longer than 0.3 s, it is remembered in the cache for as long as the
    files are certainly the same (:mod:`skillweave.base.remembered`).
    """
    if isinstance(source, nn.Module):
        return hash_tensors(Checkpoint(source))
    files = source.files if isinstance(source, Checkpoint) else find_model(Path(source))
    if files is None:
        assert isinstance(source, Checkpoint)
        return hash_tensors(source)
    state = remembered.state_of(files)
    if (known := remembered.recall(files.path, state)) is not None:
        return known
    start = time.monotonic()
    result = hash_tensors(source if isinstance(source, Checkpoint) else Checkpoint(files))
    if time.monotonic() - start > _SLOW:
        remembered.keep(files, state, result)
    return result


def hash_tensors(checkpoint: Checkpoint) -> str:
    """The fingerprint of a checkpoint, computed from its tensors."""
    sha = hashlib.sha256()
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        sha.update(json.dumps(header).encode() + b"\n")
        sha.update(tensor_bytes(tensor))
    return f"sha256:{sha.hexdigest()}"
