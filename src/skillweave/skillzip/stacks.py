"""Join the matrices of a stack, which codecs write one by one, into one entry: a layer of experts has hundreds."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from skillweave.pack import DifferenceEntry, Entry, FactorsEntry, GroupedEntry, LowRankEntry, MixedEntry, StackedEntry
from skillweave.pack.expected import expected_tensors
from skillweave.skillzip.plan import Piece

_MatrixEntry = LowRankEntry | FactorsEntry | GroupedEntry | MixedEntry | DifferenceEntry


def joined_entries(pieces: Mapping[str, Piece], entries: Mapping[str, _MatrixEntry]) -> dict[str, Entry]:
    """Return the entries by the names of the pack's tensors; ``entries`` has one for each matrix, by its key.

    The entries of a stack that are not ``lowrank`` or ``factors`` must be those of all its matrices, and equal.
    """
    joined: dict[str, Entry] = {key: entry for key, entry in entries.items() if pieces[key].index is None}
    for name, members in _stacks(pieces, entries).items():
        first, piece = entries[next(iter(members.values()))], pieces[next(iter(members.values()))]
        matrices = torch.Size(piece.stored[:-2]).numel()
        if isinstance(first, LowRankEntry | FactorsEntry):
            ranks = [0] * matrices
            for index, key in members.items():
                ranks[index] = getattr(entries[key], "rank", 0)
            form = {"bits": first.bits, "scales": first.scales} if isinstance(first, LowRankEntry) else {"bits": 16}
            joined[name] = StackedEntry.model_validate({"shape": piece.stored, "ranks": ranks, **form})
            continue
        if len(members) != matrices or any(entries[key] != first for key in members.values()):
            raise ValueError(f"'{name}': a codec wrote the {matrices} matrices of a stack in different ways")
        stacked = {} if isinstance(first, DifferenceEntry) else {"stacked": True}
        joined[name] = first.model_copy(update={"shape": piece.stored, **stacked})
    return joined


def joined_tensors(
    pieces: Mapping[str, Piece], entries: Mapping[str, _MatrixEntry], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of :func:`joined_entries`; ``tensors`` has those of each matrix.

    The factors of a ``stacked`` entry lie side by side along the rank, in the order of its matrices. A matrix without a
    rank has zeros as its scales. The tensors of other entries lie one after the other along their first axis.
    """
    stacks = _stacks(pieces, entries)
    alone = {key for members in stacks.values() for key in members.values()}
    joined = {
        name: tensor for name, tensor in tensors.items() if name not in alone and name.rpartition(".")[0] not in alone
    }
    whole = joined_entries(pieces, entries)
    for name, members in stacks.items():
        keys = list(members.values())
        entry, piece = whole[name], pieces[keys[0]]
        if isinstance(entry, DifferenceEntry):
            joined[name] = torch.stack([tensors[key] for key in keys]).view(entry.shape)
        elif not isinstance(entry, StackedEntry):
            for part in expected_tensors(name, entry):
                ending = part.removeprefix(name)
                joined[part] = torch.cat([tensors[f"{key}{ending}"] for key in keys])
        else:
            joined[f"{name}.A"] = torch.cat([tensors[f"{key}.A"] for key in keys], dim=1)
            joined[f"{name}.B"] = torch.cat([tensors[f"{key}.B"] for key in keys])
            if entry.bits != 16:
                joined[f"{name}.B_scale"] = torch.cat([tensors[f"{key}.B_scale"] for key in keys])
            if entry.bits != 16 and entry.scales == "row":
                scales = torch.zeros(len(entry.ranks), piece.shape[0], dtype=torch.float16)
                for index, key in members.items():
                    scales[index] = tensors[f"{key}.A_scale"]
                joined[f"{name}.A_scale"] = scales
    return joined


def _stacks(pieces: Mapping[str, Piece], entries: Mapping[str, _MatrixEntry]) -> dict[str, dict[int, str]]:
    """Return, for each stacked tensor, the keys of its written matrices by their index, in the stack's order."""
    stacks: dict[str, dict[int, str]] = {}
    for key in entries:
        if (index := pieces[key].index) is not None:
            stacks.setdefault(pieces[key].tensor, {})[index] = key
    return {name: dict(sorted(members.items())) for name, members in stacks.items()}
