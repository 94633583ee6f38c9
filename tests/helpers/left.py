"""The results of a run of a method, for a comparison with those of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from skillweave.delta import Delta
from skillweave.files.read import read_json


def tensors(delta: Delta) -> dict[str, torch.Tensor]:
    return {name: delta.tensor(name) for name in delta.names()}


def same_bits(one: Delta, other: Delta) -> bool:
    return one.names() == other.names() and all(
        torch.equal(one.tensor(name), other.tensor(name)) for name in one.names()
    )


def record(out: Path) -> dict[str, Any]:
    """Everything that a run has written about what it did: the same for a resumed run and an unbroken one.

    The seconds are left out, and the bytes of TPAW's players (their cards name the folder).
    """
    passing = ("seconds", "step_time", "tools/seconds", "team_bytes")

    def lasting(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: lasting(item) for key, item in value.items() if key not in passing}
        return [lasting(item) for item in value] if isinstance(value, list) else value

    kept: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.jsonl")}
    return kept | {str(path.relative_to(out)): lasting(read_json(path)) for path in out.rglob("*.json")}
