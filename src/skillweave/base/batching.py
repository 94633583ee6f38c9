"""Batches of token sequences: which rows share a batch, and how they are padded to one width. Pure functions.

Rows of similar length share a batch, because padding costs as much time as tokens do. Every function returns the same
batches for the same arguments, so a run that is resumed computes the same sums again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

TokenRow = tuple[list[int], list[int]]
"""The token ids of a prompt, and those of an answer to it."""

IGNORED = -100
"""The label of a position that no loss counts (the default of ``torch.nn.functional.cross_entropy``)."""


# -- padding ---------------------------------------------------------------------------------------------------------


def pad_left(sequences: Sequence[Sequence[int]], pad: int, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both int64 (B, T), padded on the left: every row ends at the last column."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(row)) + list(row) for row in sequences]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def pad_right(sequences: Sequence[Sequence[float]], pad: float, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """Return values and attention mask, both (B, T), padded on the right: every row begins at the first column.

    The mask is int64; the values are int64 for integers and float32 for floats.
    """
    width = max(map(len, sequences))
    values = [list(row) + [pad] * (width - len(row)) for row in sequences]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in sequences]
    return torch.tensor(values, device=device), torch.tensor(mask, device=device)


def padded(rows: Sequence[TokenRow], pad: int, device: Any = "cpu") -> dict[str, Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``labels``, all int64 (B, T), padded on the right.

    The labels are the token ids of the answers, and :data:`IGNORED` everywhere else.
    """
    ids, mask = pad_right([prompt + answer for prompt, answer in rows], pad, device)
    labels, _ = pad_right([[IGNORED] * len(prompt) + answer for prompt, answer in rows], IGNORED, device)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# -- which rows share a batch ----------------------------------------------------------------------------------------


def by_length(lengths: Sequence[int], size: int, *, shortest_first: bool = False) -> list[list[int]]:
    """Return batches of at most ``size`` row indices, the longest rows first; rows of equal length keep their order."""
    ordered = sorted(range(len(lengths)), key=lambda index: lengths[index] if shortest_first else -lengths[index])
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def within_tokens(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return batches of row indices, the shortest rows first, each of at most ``tokens`` positions when padded.

    A row longer than ``tokens`` is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def batch_rows(
    rows: Sequence[int],
    lengths: Sequence[int],
    room: Sequence[int],
    batch_size: int,
    apart: Callable[[int], Hashable] | None = None,
) -> list[list[int]]:
    """Return batches of at most ``batch_size`` of ``rows`` for generation, the longest prompts first.

    * ``lengths`` and ``room`` give, for each row, the tokens of its prompt and the tokens that it may still write.
    * All rows of a batch have the same ``room``. Otherwise a prompt near the end of the context would cut short the
      answers beside it.
    * Rows with different values of ``apart(row)`` are never in one batch.
    * ``rows`` may name a row several times: once for each sample.
    """
    kinds: dict[Hashable, list[int]] = {}
    for row in sorted(rows, key=lambda row: -lengths[row]):
        kinds.setdefault(apart(row) if apart else None, []).append(row)
    groups = [list(group) for kind in kinds.values() for _, group in itertools.groupby(kind, key=lambda row: room[row])]
    return [group[at : at + batch_size] for group in groups for at in range(0, len(group), batch_size)]
