"""Store tensors whose rows are tokens, if the tuned model has more or fewer rows: added tokens, trimmed padding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from skillweave.base import Checkpoint
from skillweave.delta import Delta
from skillweave.delta.vocabulary import check_trimmed
from skillweave.errors import UserError
from skillweave.pack import RowsEntry
from skillweave.pack.schema import ROWS


@dataclass
class StoredRows:
    """The ``rows`` entries of a pack, and their tensors by the same names."""

    entries: dict[str, RowsEntry] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rounded: list[str] = field(default_factory=list)
    """the tensors whose added rows are stored in a narrower dtype than they were tuned in"""


def resized(delta: Delta, checkpoint: Checkpoint, name: str) -> bool:
    """Return whether the delta changes the number of rows of a tensor of the base."""
    return name in checkpoint and checkpoint.shape(name) != delta.shape(name)


def store_token_rows(delta: Delta, checkpoint: Checkpoint, tokenizer: Any) -> StoredRows:
    """Return what a pack stores of the rows that only the base or only the tuned model has.

    ``tokenizer`` is the one that the pack answers with. Added rows are stored as tuned, or in bfloat16 if their dtype
    is wider than 16 bits. Raises :class:`UserError` if a token of the tokenizer lost its row, or if rows hold NaN or
    infinity.
    """
    stored = StoredRows()
    for name in delta.names():
        if not resized(delta, checkpoint, name):
            continue
        entry = RowsEntry(shape=delta.shape(name), base_rows=checkpoint.shape(name)[0])
        if entry.added:
            rows = delta.tensor(name)[entry.base_rows :].clone()
            if not bool(rows.isfinite().all()):
                raise UserError(f"the added rows of '{name}' hold NaN or infinity: the training run diverged")
            if rows.dtype.itemsize > 2:
                stored.rounded.append(name)
                rows = rows.bfloat16()
            stored.tensors[name + ROWS] = rows
        else:
            check_trimmed(tokenizer, entry.shape[0], entry.base_rows, "the tuned model")
        stored.entries[name + ROWS] = entry
    return stored


def shared_change(delta: Delta, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Return theta - theta_base in float32 and the base's shape.

    It is 0 in rows that the tuned model does not have. Rows that the base does not have are left out.
    """
    base, tuned = checkpoint.tensor(name).float().cpu(), delta.tensor(name).float()
    shared = min(base.shape[0], tuned.shape[0])
    change = torch.zeros_like(base)
    change[:shared] = tuned[:shared] if delta.shared_rows(name) is not None else tuned[:shared] - base[:shared]
    return change


def bf16_bytes(delta: Delta, checkpoint: Checkpoint, unchanged: Collection[str]) -> int:
    """Return two bytes for every number that changed.

    A tensor in ``unchanged`` counts only with the rows that the base does not have.
    """
    total = 0
    for name in delta.names():
        shape = delta.shape(name)
        rows = max(0, shape[0] - checkpoint.shape(name)[0]) if name in unchanged else None
        total += 2 * torch.Size(shape if rows is None else (rows, *shape[1:])).numel()
    return total
