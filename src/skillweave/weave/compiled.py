"""The functions of kernels.cpp, compiled on this machine when they are first needed, or None where that cannot be done.

They compute the formulas of :mod:`skillweave.weave.int8` and :mod:`skillweave.weave.linear` in few calls. With a few
tokens, a model of many small layers spends most of its time on calls, not on products. Without a C++ compiler, without
AVX512 VNNI, or on another device, the same formulas are computed with torch.

The library is kept in ``cache_folder()/compiled``, named by a digest of its two source files and of the command that
makes it. The environment variable :data:`OVERRIDE` switches the compiled functions off.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from skillweave.base.cache import cache_folder
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.progress import say_once

OVERRIDE = "SKILLWEAVE_COMPILED"
"""Set to 0, it keeps this module from compiling and loading anything."""
_SOURCE = Path(__file__).with_name("kernels.cpp")
_HEADER = Path(__file__).with_name("products.h")
_FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off",
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mf16c",
)  # fmt: skip
_LONGEST_COMPILATION = 300
"""Seconds."""

KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""The dtypes of activations that the functions take, with the number that stands for each."""
READ = {**KINDS, torch.float16: 2}
"""The dtypes of parameters that they read."""


class Floats(ctypes.Structure):
    """As in kernels.cpp. Addresses are plain numbers: the tensors are kept elsewhere."""

    _fields_ = [("at", ctypes.c_size_t), ("kind", ctypes.c_int64)]

    @classmethod
    def of(cls, tensor: torch.Tensor | None) -> Floats:
        return cls(0, 0) if tensor is None else cls(tensor.data_ptr(), READ[tensor.dtype])


class LayerArgument(ctypes.Structure):
    """``Layer`` of kernels.cpp."""

    _fields_ = [
        ("weight", ctypes.c_size_t),
        ("weight_scale", ctypes.c_size_t),
        ("outlier_weight", Floats),
        ("outlier_stride", ctypes.c_int64),
        ("bias", Floats),
        ("out", ctypes.c_int64),
        ("y", ctypes.c_size_t),
    ]


class SegmentArgument(ctypes.Structure):
    """``Segment`` of kernels.cpp."""

    _fields_ = [
        ("B", ctypes.c_size_t),
        ("rank", ctypes.c_int64),
        ("unsmooth", ctypes.c_size_t),
        ("rows", ctypes.c_size_t),
        ("count", ctypes.c_int64),
    ]


class PartArgument(ctypes.Structure):
    """``Part`` of kernels.cpp."""

    _fields_ = [
        ("column", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("B_scale", ctypes.c_size_t),
        ("A", ctypes.c_size_t),
        ("A_scale", Floats),
    ]


_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS: dict[str, Sequence[Any]] = {
    "sw_linear": [_ADDRESS, _NUMBER, _NUMBER, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER],
    "sw_codes": [_ADDRESS, _NUMBER, _NUMBER, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, _ADDRESS],
    "sw_finish": [_ADDRESS, _NUMBER, _NUMBER, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER],
    "sw_into_rank": [_ADDRESS, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS],
    "sw_out_of_rank": [
        _ADDRESS, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS
    ],
    "sw_unpack": [_ADDRESS, _NUMBER, _NUMBER, _NUMBER, _ADDRESS],
    "sw_interleave": [_ADDRESS, _NUMBER, _NUMBER, _NUMBER, _ADDRESS],
}  # fmt: skip


@functools.cache
def compiled() -> Any:
    """The library with the functions of kernels.cpp, or None. It is compiled at the first call on a machine.

    Raises :class:`UserError` if :data:`OVERRIDE` is set to anything but 0 or 1.
    """
    override = os.environ.get(OVERRIDE, "")
    if override not in ("", "0", "1"):
        raise UserError(f"the environment variable {OVERRIDE} is '{override}': set it to 1 or 0, or remove it")
    if override == "0" or not _may_run():
        return None
    compiler = next((found for name in ("g++", "c++") if (found := shutil.which(name))), None)
    if compiler is None:
        _say_slower("there is no C++ compiler")
        return None
    name = digest([*(file.read_text(encoding="utf-8") for file in (_SOURCE, _HEADER)), compiler, *_FLAGS])
    place = cache_folder() / "compiled" / f"{name}.so"
    if not place.exists() and (problem := _compile(compiler, place)):
        _say_slower(problem)
        return None
    try:
        library = ctypes.CDLL(str(place))
    except OSError as error:
        _say_slower(f"{place} cannot be loaded ({error})")
        return None
    library.sw_supported.restype = ctypes.c_int64
    if not library.sw_supported():
        return None
    for function, arguments in _ARGUMENTS.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = None
    return library


def usable(x: torch.Tensor) -> bool:
    """Whether the compiled functions can read this tensor of activations. They know no gradients."""
    if compiled() is None or (x.requires_grad and torch.is_grad_enabled()):
        return False
    return x.device.type == "cpu" and x.dtype in KINDS and x.is_contiguous() and x.numel() > 0


def _may_run() -> bool:
    """Whether this processor is one that the functions are written for, as far as torch can tell."""
    return platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _compile(compiler: str, place: Path) -> str | None:
    """Compile the source into ``place``. Returns what went wrong, or None."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and then renamed, so that other processes never load half a file.
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / place.name
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_COMPILATION, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                return f"{compiler} did not compile {_SOURCE.name} ({lines[0] if lines else 'it gave no reason'})"
            os.replace(made, place)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{_SOURCE.name} could not be compiled ({error})"
    return None


def _say_slower(reason: str) -> None:
    say_once(f"{reason}, so packs and int8 layers are computed with torch, which is slower with a few tokens at a time")
