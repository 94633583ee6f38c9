"""Read and write safetensors files one tensor at a time: memory is that of the largest tensor.

The library's ``save_file`` needs all tensors of a file at once. The format is simple enough to stream: 8 bytes with the
length of the header, a JSON header with offsets, then the values in order
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from skillweave.errors import UserError
from skillweave.files.atomic import atomic_file
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
"""Name of a dtype in the format -> dtype, for all that are read and written."""
_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_OPEN_AT_ONCE = 64
SHARD_BYTES = 5 * 10**9
"""The usual limit for one file of a Hugging Face model."""


def open_safetensors(file: Path) -> Any:
    """``safe_open`` for torch. Raises :class:`UserError`, which names the file, if it is missing or damaged."""
    try:
        # pread instead of a mapping: every page of a mapping that was touched counts as memory of this process.
        complete = regular_file(file, "a folder that is complete, or copy this one again")
        return safe_open(complete, framework="pt", backend="pread")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): copy or download it again") from error


def read_headers(file: Path) -> dict[str, Spec]:
    """Name -> (shape, dtype) of every tensor in a safetensors file. No values are read."""
    headers = {}
    with open_safetensors(file) as handle:
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            part = handle.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise UserError(f"{file}: the tensor '{name}' has the type {part.get_dtype()}, which is not read here")
            headers[name] = (tuple(part.get_shape()), DTYPES[part.get_dtype()])
    return headers


class TensorFiles:
    """The tensors of several safetensors files, by their names in the files.

    A file is opened at the first read, or by :meth:`open`, and stays open, so that a file that is replaced meanwhile is
    still read to its end. That holds for the first 64 files: more are opened again for each read. Reads from several
    threads are safe.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, Any] = {}

    def open(self) -> None:
        """Open all files, which checks them; the first 64 are then read as they are now. Raises :class:`UserError`."""
        for file in dict.fromkeys(self._files.values()):
            self._handle(file)

    def read(self, name: str) -> torch.Tensor:
        """One tensor as stored. Raises :class:`UserError` if the file is damaged."""
        file = self._files[name]
        try:
            return self._handle(file).get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(f"{file}: the tensor '{name}' cannot be read ({error}): copy the file again") from error

    def _handle(self, file: Path) -> Any:
        handle = self._open.get(file)
        if handle is None:
            handle = open_safetensors(file)
            if len(self._open) < _OPEN_AT_ONCE:
                self._open[file] = handle
        return handle


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of one safetensors file. Raises :class:`UserError` if the file is damaged."""
    names = list(read_headers(file))
    stored = TensorFiles(dict.fromkeys(names, file))
    return {name: stored.read(name) for name in names}


def spec_bytes(spec: Spec) -> int:
    """The bytes of a tensor with this shape and dtype."""
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


def file_bytes(specs: Mapping[str, Spec], metadata: Mapping[str, str] | None = None) -> int:
    """The exact size in bytes of the file that :func:`write_stream` writes for these tensors: header and values.

    The library's ``save_file`` may order the tensors otherwise, so that its header has a few bytes more or fewer.
    """
    return len(_header(specs, metadata)) + sum(map(spec_bytes, specs.values()))


def write_stream(
    path: Path,
    specs: Mapping[str, Spec],
    read: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write one safetensors file, calling ``read(name)`` for each tensor once; return the file's SHA-256 in hex.

    Raises ``ValueError`` if ``read`` gives another shape or dtype than ``specs`` announces. ``metadata`` is written
    into the header, beside ``"format": "pt"``. The write is not atomic: call it inside ``atomic_folder``.
    """
    header = _header(specs, metadata)
    sha = hashlib.sha256(header)
    with open(path, "wb") as file:
        file.write(header)
        for name in _order(specs):
            tensor = read(name)
            if (tuple(tensor.shape), tensor.dtype) != specs[name]:
                raise ValueError(f"{name}: announced {specs[name]}, got {tensor.dtype} {tuple(tensor.shape)}")
            values = tensor_bytes(tensor)
            file.write(values)
            sha.update(values)
    return sha.hexdigest()


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors that are in memory into one safetensors file, atomically."""
    specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        write_stream(temporary, specs, tensors.__getitem__, metadata)


def _order(specs: Mapping[str, Spec]) -> list[str]:
    """The names in the order of their values in the file: wide dtypes first, then by name.

    That keeps every tensor aligned to its element size, as the safetensors library does.
    """
    return sorted(specs, key=lambda name: (-specs[name][1].itemsize, name))


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str] | None) -> bytes:
    """The first bytes of a file with these tensors: the length of the JSON header, then the header itself."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in _order(specs):
        shape, dtype = specs[name]
        start, end = end, end + spec_bytes(specs[name])
        header[name] = {"dtype": _TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as safetensors stores them: row-major, little-endian. Copied only if necessary."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
