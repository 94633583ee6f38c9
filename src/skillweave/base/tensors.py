"""Open safetensors files: headers without values, then one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from skillweave.errors import UserError
from skillweave.files.read import regular_file

Spec = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes that are read and written, by their names in the format."""
_OPEN_AT_ONCE = 64


def open_safetensors(file: Path) -> Any:
    """``safe_open`` for torch, where a missing or damaged file is a :class:`UserError` that names it."""
    try:
        # Read, not mapped: a mapping would count every page that was touched as memory of this process.
        complete = regular_file(file, "a folder that is complete, or copy this one again")
        return safe_open(complete, framework="pt", backend="pread")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): copy or download it again") from error


def read_headers(file: Path) -> dict[str, Spec]:
    """Name -> (shape, dtype) of every tensor in a safetensors file; no values are read."""
    headers = {}
    with open_safetensors(file) as handle:
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            part = handle.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise UserError(f"{file}: the tensor '{name}' has the type {part.get_dtype()}, which is not read here")
            headers[name] = (tuple(part.get_shape()), DTYPES[part.get_dtype()])
    return headers


class TensorFiles:
    """Tensors of several safetensors files by their names in the files.

    A file is opened at the first read and stays open, so that one which is replaced meanwhile is still read to its
    end; at most 64 stay open. Reads from several threads are safe.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, Any] = {}

    def read(self, name: str) -> torch.Tensor:
        """One tensor as stored. Raises :class:`UserError` where the file is damaged."""
        file = self._files[name]
        handle = self._open.get(file)
        if handle is None:
            handle = open_safetensors(file)
            if len(self._open) < _OPEN_AT_ONCE:
                self._open[file] = handle
        try:
            return handle.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(f"{file}: the tensor '{name}' cannot be read ({error}): copy the file again") from error
