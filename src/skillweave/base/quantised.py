"""Read quantised weights as the numbers that they stand for: codes times scales.

A folder of codes stands for the model with these numbers: they are hashed, subtracted and loaded. Only methods that
need no more than a product are read:

- FP8 with one scale for a tensor, a row or a block: ``fp8``, ``fbgemm_fp8``, and the formats ``float-quantized``,
  ``int-quantized`` and ``naive-quantized`` of compressed-tensors;
- gpt-oss' ``mxfp4``.

All other methods are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from skillweave.base.folder import CONFIG, ModelFolder
from skillweave.base.safetensors_io import Spec
from skillweave.errors import UserError

QUANTISATION = ("quantization_config", "compression_config")
"""Keys of config.json that say how weights are quantised."""
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_NARROW = (*_FP8, torch.float8_e8m0fnu)
_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")
_SCALES = ("weight_scale_inv", "weight_scale")
_UNUSED = ("activation_scale", "input_scale", "input_scale_ub", "input_zero_point")
"""Suffixes of activation scales, which only a product with quantised activations uses."""
_ADVICE = "Name the unquantised model as the base (the one that this was quantised from)."

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Codes:
    """A tensor that is stored as codes: the names of its parts in the files, and the spec of its numbers."""

    codes: str
    scales: str
    spec: Spec
    block: tuple[int, int] | None = None
    """Rows and columns of a block that shares a scale, if the config names them."""
    packed: bool = False
    """Whether the codes are gpt-oss' mxfp4: two four-bit numbers per byte, with a shared exponent for each 32."""

    def read(self, read: Read) -> torch.Tensor:
        """The numbers, computed in float32 and rounded once to the dtype of ``spec``."""
        codes, scales = read(self.codes), read(self.scales)
        if self.packed:
            return convert_moe_packed_tensors(codes, scales, dtype=self.spec[1]).contiguous()
        return dequantised(codes, scales, self.block).to(self.spec[1])


def dequantised(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] | None = None) -> torch.Tensor:
    """codes * scales in float32.

    Args:
        codes: (..., rows, columns).
        scales: One for all, (rows,), or (..., a, b) with one for each block.
        block: Rows and columns of a block, where the last blocks may be smaller. None: all blocks have one size.
    """
    wide, grid = codes.float(), _float_scales(scales)
    if grid.numel() == 1:
        return wide * grid.reshape(())
    grid = grid[:, None] if grid.dim() == 1 else grid
    for axis in (-2, -1):
        size = codes.shape[axis]
        length = _length(size, grid.shape[axis], block[axis] if block else None)
        grid = grid.repeat_interleave(length, dim=axis).narrow(axis, 0, size)
    return wide * grid


def _float_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales as float32; a byte is an exponent, 2 ** (byte - 127)."""
    return (scales.float() - 127).exp2() if scales.dtype is torch.uint8 else scales.float()


def _length(size: int, parts: int, named: int | None) -> int:
    """The length of a block if ``parts`` blocks cover ``size``; 0 if no length fits. ``named``: the config's."""
    if parts in (1, size):
        return size // parts
    if named is not None:
        return named if -(-size // named) == parts else 0
    return size // parts if parts and size % parts == 0 else 0


def find_codes(files: ModelFolder) -> tuple[dict[str, Codes], set[str]]:
    """(tensor -> its codes, names in the files that are parts of such a tensor or scales of activations).

    ``tensor`` is the name that an unquantised file would have. The result is ({}, set()) if nothing is quantised.
    Raises :class:`UserError` for a method that is not read, for codes without scales, and for a file of codes whose
    ``config.json`` does not say so.
    """
    settings = _settings(files)
    headers = files.headers
    if settings is None:
        _refuse_undeclared(files)
        return {}, set()
    path = files.path / CONFIG
    method = _method(settings, path)
    if method == "mxfp4":
        tensors = _mxfp4(headers, _dtype(files))
    elif method in ("fp8", "fbgemm_fp8") or (method == "compressed-tensors" and _symmetric(settings)):
        tensors = _scaled(files, settings, _dtype(files))
    else:
        raise UserError(
            f"{path}: the weights are quantised by '{method}', which is not read here, because its numbers are "
            f"not codes times scales. {_ADVICE}"
        )
    if not tensors:
        raise UserError(
            f"{path}: quantization_config says '{method}', and the files hold no such codes: the config belongs to "
            f"another model. Remove quantization_config if the weights are plain. {_ADVICE}"
        )
    parts = {name for codes in tensors.values() for name in (codes.codes, codes.scales)}
    return tensors, parts | {name for name in headers if name.endswith(_UNUSED)}


def _settings(files: ModelFolder) -> Mapping[str, Any] | None:
    """What config.json says about quantisation; None if it says nothing."""
    config = files.config
    for key in QUANTISATION:
        for at, inner in [("", config), *((f"{k}.", v) for k, v in config.items() if isinstance(v, dict))]:
            value = inner.get(key)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise UserError(f"{files.path / CONFIG}: {at}{key} is {value!r:.40}, expected an object. {_ADVICE}")
            return value
    return None


def _method(settings: Mapping[str, Any], path: Path) -> str:
    method = settings.get("quant_method")
    if method is not None:
        return str(method)
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    if "config_groups" in settings:
        return "compressed-tensors"
    raise UserError(
        f"{path}: the quantization_config has no quant_method, so nothing says how to read the weights. Remove "
        f"quantization_config if the weights are plain. {_ADVICE}"
    )


def _symmetric(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of compressed-tensors mean codes times scales, without zero points."""
    if settings.get("sparsity_config"):
        return False
    groups = settings.get("config_groups")
    weights = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    symmetric = all(one.get("symmetric", True) for one in weights if isinstance(one, dict))
    return settings.get("format") in _FORMATS and symmetric


def _dtype(files: ModelFolder) -> torch.dtype:
    """The dtype of the numbers: the config's, in which the model was trained and is served, else float32."""
    named = files.config.get("dtype") or files.config.get("torch_dtype")
    if named is None and isinstance(text := files.config.get("text_config"), dict):
        named = text.get("dtype") or text.get("torch_dtype")
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    return known.get(str(named).removeprefix("torch."), torch.float32)


def _scaled(files: ModelFolder, settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Codes]:
    headers, block = files.headers, _block(settings)
    kinds = (*_FP8, torch.int8) if settings.get("format") in _FORMATS else _FP8
    found = {}
    for name, (shape, stored) in headers.items():
        # A layer's "weight", or the experts of a mixture in one tensor.
        stem = name.removesuffix("weight") if name.endswith("weight") else f"{name}_"
        endings = _SCALES if name.endswith("weight") else [ending.removeprefix("weight_") for ending in _SCALES]
        scales = next((stem + ending for ending in endings if stem + ending in headers), None)
        if scales is None and stored not in _NARROW:
            continue
        odd = "no scales" if scales is None else "" if stored in kinds else "scales"
        odd = "zero points" if f"{stem}weight_zero_point" in headers else odd
        if odd or scales is None:
            raise UserError(
                f"{files.files[name]}: '{name}' is a tensor of codes ({_short(stored)}) with {odd} beside it, so it "
                f"is not known which numbers it stands for. {_ADVICE}"
            )
        grid = headers[scales][0]
        if not _fits(shape, grid, block):
            raise UserError(
                f"{files.files[scales]}: '{scales}' has the shape {grid}, which does not fit the codes '{name}' of "
                f"{shape}: expected one scale for the tensor, its rows or its blocks. {_ADVICE}"
            )
        found[name] = Codes(name, scales, (shape, dtype), block)
    return found


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    block = settings.get("weight_block_size")
    if isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block):
        return block[0], block[1]
    return None


def _fits(shape: tuple[int, ...], grid: tuple[int, ...], block: tuple[int, int] | None) -> bool:
    """Whether scales of the shape ``grid`` fit codes of ``shape``: one scale, one per row, or one per block."""
    if torch.Size(grid).numel() == 1:
        return True
    grid = (*grid, 1) if len(grid) == 1 else grid
    if len(shape) < 2 or len(grid) != len(shape) or grid[:-2] != shape[:-2]:
        return False
    return all(_length(shape[axis], grid[axis], block[axis] if block else None) > 0 for axis in (-2, -1))


def _mxfp4(headers: Mapping[str, Spec], dtype: torch.dtype) -> dict[str, Codes]:
    found = {}
    for name, (shape, _) in headers.items():
        stem = name.removesuffix("_blocks")
        scales = f"{stem}_scales"
        if stem == name or scales not in headers or len(shape) != 4 or headers[scales][0] != shape[:-1]:
            continue
        experts, rows, groups, half = shape
        found[stem] = Codes(name, scales, ((experts, groups * half * 2, rows), dtype), packed=True)
    return found


def _refuse_undeclared(files: ModelFolder) -> None:
    """Raise for tensors that look like codes if config.json does not declare them."""
    for name, (_, dtype) in files.headers.items():
        packed = name.endswith((".qweight", ".weight_packed", ".absmax", ".SCB", "_blocks", *_SCALES))
        if dtype in _NARROW or packed:
            raise UserError(
                f"{files.files[name]}: '{name}' ({_short(dtype)}) is a part of quantised weights, and {CONFIG} has no "
                f"quantization_config that says how to read them. {_ADVICE}"
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
