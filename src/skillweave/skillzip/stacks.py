"""Join the matrices of a stack, which codecs write one by one, into one entry: a layer of experts has hundreds."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from skillweave.pack import Entry, FactorsEntry, LowRankEntry, StackedEntry
from skillweave.skillzip.plan import Piece


def joined_entries(pieces: Mapping[str, Piece], entries: Mapping[str, LowRankEntry | FactorsEntry]) -> dict[str, Entry]:
    """Return the entries by the names of the pack's tensors; ``entries`` has one for each matrix, by its key."""
    joined: dict[str, Entry] = {key: entry for key, entry in entries.items() if pieces[key].index is None}
    for name, members in _stacks(pieces, entries).items():
        first, piece = entries[next(iter(members.values()))], pieces[next(iter(members.values()))]
        matrices = torch.Size(piece.stored[:-2]).numel()
        ranks = [entries[members[index]].rank if index in members else 0 for index in range(matrices)]
        bits = first.bits if isinstance(first, LowRankEntry) else 16
        joined[name] = StackedEntry(shape=piece.stored, ranks=ranks, bits=bits)
    return joined


def joined_tensors(
    pieces: Mapping[str, Piece],
    entries: Mapping[str, LowRankEntry | FactorsEntry],
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return the tensors of :func:`joined_entries`; ``tensors`` has those of each matrix.

    The factors of a stack lie side by side along the rank, in the order of its matrices. A matrix without a rank has
    zeros as its scales.
    """
    stacks = _stacks(pieces, entries)
    alone = {key for members in stacks.values() for key in members.values()}
    joined = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in alone}
    for name, members in stacks.items():
        keys = list(members.values())
        piece = pieces[keys[0]]
        joined[f"{name}.A"] = torch.cat([tensors[f"{key}.A"] for key in keys], dim=1)
        joined[f"{name}.B"] = torch.cat([tensors[f"{key}.B"] for key in keys])
        if isinstance(entries[keys[0]], LowRankEntry):
            scales = torch.zeros(torch.Size(piece.stored[:-2]).numel(), piece.shape[0], dtype=torch.float16)
            for index, key in members.items():
                scales[index] = tensors[f"{key}.A_scale"]
            joined[f"{name}.A_scale"] = scales
            joined[f"{name}.B_scale"] = torch.cat([tensors[f"{key}.B_scale"] for key in keys])
    return joined


def _stacks(
    pieces: Mapping[str, Piece], entries: Mapping[str, LowRankEntry | FactorsEntry]
) -> dict[str, dict[int, str]]:
    """Return, for each stacked tensor, the keys of its written matrices by their index, in the stack's order."""
    stacks: dict[str, dict[int, str]] = {}
    for key in entries:
        if (index := pieces[key].index) is not None:
            stacks.setdefault(pieces[key].tensor, {})[index] = key
    return {name: dict(sorted(members.items())) for name, members in stacks.items()}
