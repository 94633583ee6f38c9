"""Check the numbers of a PEFT adapter: impossible ranks, alphas and values are refused, and the message names them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from skillweave.delta.arithmetic import finite
from skillweave.errors import UserError

_LARGEST_RANK = 2**20
_LARGEST_ALPHA = 2.0**30
_FLAGS = ("use_rslora", "fan_in_fan_out")


def check_adapter_numbers(config: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`UserError`, which names the key, unless ranks are positive integers and alphas positive numbers.

    ``config`` is the content of ``adapter_config.json`` at ``path``. A missing key has PEFT's default; null is refused
    for these two numbers, as PEFT fails on it.
    """
    for key in _FLAGS:
        if not isinstance(config.get(key, False), bool | None):
            raise _refused(path, key, config[key], "true or false")
    for key, pattern, check, expected in (
        ("r", "rank_pattern", _is_rank, "a whole number from 1 on"),
        ("lora_alpha", "alpha_pattern", _is_alpha, "a finite number above 0"),
    ):
        if key in config and not check(config[key]):
            raise _refused(path, key, config[key], expected)
        patterns = config.get(pattern) or {}
        if not isinstance(patterns, dict):
            raise _refused(path, pattern, patterns, "an object: module -> number")
        for module, value in patterns.items():
            if not check(value):
                raise _refused(path, f"{pattern}.{ascii(module)[1:-1][:80]}", value, expected)


def check_rank(rank: int, name: str, config: Mapping[str, Any], file: Path) -> None:
    """Raise :class:`UserError` unless the config names ``rank``, the rank of the factors of ``name`` in ``file``."""
    if rank < 1:
        raise UserError(f"{file}: the factors of '{name}' have the rank 0: the adapter is incomplete, save it again")
    named = {config.get("r"), *(config.get("rank_pattern") or {}).values()} - {None}
    if named and rank not in named:
        raise UserError(
            f"{file}: the factors of '{name}' have the rank {rank}, and adapter_config.json names "
            f"{', '.join(map(str, sorted(named)[:5]))}: the two files are not of one adapter, save it again"
        )


def check_finite(tensor: torch.Tensor, name: str, file: Path) -> torch.Tensor:
    """Return ``tensor``, the value of ``name`` from ``file``. Raises :class:`UserError` for NaN or infinity."""
    if tensor.is_floating_point() and not finite(tensor.float() if tensor.itemsize == 1 else tensor):
        raise UserError(f"{file}: the tensor '{name}' holds NaN or infinity: training diverged, or the file is damaged")
    return tensor


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_RANK


def _is_alpha(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and 0 < value <= _LARGEST_ALPHA


def _refused(path: Path, key: str, value: Any, expected: str) -> UserError:
    return UserError(f"{path}: {key} is {ascii(value)[:40]}; expected {expected}. Save the adapter again with PEFT.")
