"""The functions of kernels.cpp, compiled on this machine when they are first needed, or None where that cannot be done.

They compute the formulas of :mod:`skillweave.weave.int8` and :mod:`skillweave.weave.linear` in few calls. With a few
tokens, a model of many small layers spends most of its time on calls, not on products. Without a C++ compiler, without
AVX512 VNNI, or on another device, the same formulas are computed with torch.

How they are compiled, kept and switched off is in :mod:`skillweave.files.native`.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from skillweave.files.native import allowed, library

_SOURCE = Path(__file__).with_name("kernels.cpp")
LANES = Path(__file__).with_name("lanes.h")
"""What every C++ file of ours with 16 lanes includes."""
_HEADERS = (Path(__file__).with_name("products.h"), LANES)
_FLAGS = (
    "-fopenmp", "-ffp-contract=off",
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mf16c",
)  # fmt: skip

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
    "sw_widen": [_ADDRESS, _ADDRESS, _NUMBER, _ADDRESS],
}  # fmt: skip


@functools.cache
def compiled() -> Any:
    """The library with the functions of kernels.cpp, or None. It is compiled at the first call on a machine.

    Raises :class:`UserError` if :data:`skillweave.files.native.OVERRIDE` is set to anything but 0 or 1.
    """
    if not allowed() or not may_run():
        return None
    without = "packs and int8 layers are computed with torch, which is slower with a few tokens at a time"
    made = library(_SOURCE, without, _HEADERS, _FLAGS)
    if made is None:
        return None
    made.sw_supported.restype = ctypes.c_int64
    if not made.sw_supported():
        return None
    for function, arguments in _ARGUMENTS.items():
        getattr(made, function).argtypes = arguments
        getattr(made, function).restype = None
    return made


def usable(x: torch.Tensor) -> bool:
    """Whether the compiled functions can read this tensor of activations. They know no gradients."""
    if compiled() is None or (x.requires_grad and torch.is_grad_enabled()):
        return False
    return x.device.type == "cpu" and x.dtype in KINDS and x.is_contiguous() and x.numel() > 0


def may_run() -> bool:
    """Whether this processor is one that the functions are written for, as far as torch can tell."""
    return platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() == "AVX512"
