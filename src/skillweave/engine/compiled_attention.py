"""Attention of a decoding step by a function of attention.cpp, where the processor and a compiler allow it.

With torch, the pages of all sequences are gathered and padded in each layer. In a step of a few tokens this takes
longer than the attention itself.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skillweave.files.native import allowed, library
from skillweave.weave.compiled import KINDS, LANES, may_run

_SOURCE = Path(__file__).with_name("attention.cpp")
_FLAGS = ("-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_N, _P = ctypes.c_int64, ctypes.c_void_p


class _Sequences(ctypes.Structure):
    """As in attention.cpp. Addresses are plain numbers: the tensors are kept by the caller."""

    _fields_ = [
        ("count", _N), ("heads", _N), ("key_heads", _N), ("size", _N), ("kind", _N), ("cache_kind", _N), ("page", _N),
        ("table_stride", _N), ("scaling", ctypes.c_float), ("ends", _P), ("table", _P),
    ]  # fmt: skip


class _Row(ctypes.Structure):
    """As in attention.cpp."""

    _fields_ = [("at", _P), ("head", _N), ("token", _N)]

    @classmethod
    def of(cls, tensor: Tensor) -> _Row:
        return cls(tensor.data_ptr(), tensor.stride(1), tensor.stride(2))


@functools.cache
def compiled_attention() -> Any:
    """The library with the function of attention.cpp, or None. It is compiled at the first call on a machine."""
    if not allowed() or not may_run():
        return None
    made = library(_SOURCE, "steps of decoding compute attention with torch, which is slower", [LANES], _FLAGS)
    if made is None or not made.sw_attention_supported():
        return None
    made.sw_decode.restype = None
    return made


@dataclass(frozen=True)
class DecodingStep:
    """One layer's attention of a step with one new token for each of B sequences.

    - ``query`` (1, heads, B, d), ``key`` and ``value`` (1, key heads, B, d): those of the new tokens
    - ``caches``: keys and values (pages, page, key heads, d)
    - ``table`` int32 (B, pages): the pages of each sequence
    - ``ends`` int32 (B + 1,): where the keys of each sequence would end if they all stood in one row
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    caches: tuple[Tensor, Tensor]
    table: Tensor
    ends: Tensor


def takes(step: DecodingStep) -> bool:
    """Whether :func:`decoded` can compute this step."""
    query, key, value, table = step.query, step.key, step.value, step.table
    if query.device.type != "cpu" or query.dtype not in KINDS or compiled_attention() is None:
        return False
    return (
        key.dtype is value.dtype is step.caches[0].dtype is step.caches[1].dtype
        and key.dtype in KINDS
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and all(cache.is_contiguous() for cache in step.caches)
        and table.dtype is step.ends.dtype is torch.int32
        and table.stride(1) == 1
    )


def decoded(step: DecodingStep) -> Tensor:
    """What each query sees, (1, B, heads, d), after the new keys and values were put into the caches."""
    query, table = step.query, step.table
    _, heads, count, size = query.shape
    keys, values = step.caches
    out = query.new_empty(1, count, heads, size)
    sequences = _Sequences(
        count, heads, step.key.shape[1], size, KINDS[query.dtype], KINDS[keys.dtype], keys.shape[1],
        table.stride(0), step.scaling, step.ends.data_ptr(), table.data_ptr(),
    )  # fmt: skip
    rows = [ctypes.byref(_Row.of(one)) for one in (query, step.key, step.value)]
    compiled_attention().sw_decode(
        ctypes.byref(sequences), *rows, _P(keys.data_ptr()), _P(values.data_ptr()), _P(out.data_ptr())
    )
    return out
