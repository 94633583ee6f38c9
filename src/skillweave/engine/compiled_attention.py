"""Attention of a decoding step by a function of attention.cpp, where the processor and a compiler allow it.

With torch, the pages of all sequences are gathered and padded in each layer. In a step of a few tokens this takes
longer than the attention itself.
"""

from __future__ import annotations

import ctypes
import functools
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


def takes(
    query: Tensor, key: Tensor, value: Tensor, caches: tuple[Tensor, Tensor], table: Tensor, ends: Tensor
) -> bool:
    """Whether :func:`decoded` can compute this step."""
    if query.device.type != "cpu" or query.dtype not in KINDS or compiled_attention() is None:
        return False
    return (
        key.dtype is value.dtype is caches[0].dtype is caches[1].dtype
        and key.dtype in KINDS
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and all(cache.is_contiguous() for cache in caches)
        and table.dtype is ends.dtype is torch.int32
        and table.stride(1) == 1
    )


def decoded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    caches: tuple[Tensor, Tensor],
    table: Tensor,
    ends: Tensor,
) -> Tensor:
    """What each query sees, (1, B, heads, d), after the new keys and values were put into the caches.

    - ``query`` (1, heads, B, d), ``key`` and ``value`` (1, key heads, B, d): those of one new token for each sequence
    - ``caches``: keys and values (pages, page, key heads, d)
    - ``table`` int32 (B, pages): the pages of each sequence
    - ``ends`` int32 (B + 1,): where the keys of each sequence would end if they all stood in one row
    """
    _, heads, count, size = query.shape
    keys, values = caches
    out = query.new_empty(1, count, heads, size)
    sequences = _Sequences(
        count, heads, key.shape[1], size, KINDS[query.dtype], KINDS[keys.dtype], keys.shape[1],
        table.stride(0), scaling, ends.data_ptr(), table.data_ptr(),
    )  # fmt: skip
    rows = [ctypes.byref(_Row.of(one)) for one in (query, key, value)]
    compiled_attention().sw_decode(
        ctypes.byref(sequences), *rows, _P(keys.data_ptr()), _P(values.data_ptr()), _P(out.data_ptr())
    )
    return out
