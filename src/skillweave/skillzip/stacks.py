"""The matrices of a stack, written one by one, become one entry: a layer of experts has hundreds."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from skillweave.pack import Entry, FactorsEntry, LowRankEntry, StackedEntry
from skillweave.skillzip.plan import Piece


def joined(
    pieces: Mapping[str, Piece],
    entries: Mapping[str, LowRankEntry | FactorsEntry],
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, Entry], dict[str, torch.Tensor]]:
    """Entries and tensors by the names of the pack: those of a stack's matrices are laid together."""
    stacks: dict[str, dict[int, str]] = {}
    made: dict[str, Entry] = {}
    for key, entry in entries.items():
        piece = pieces[key]
        if piece.index is None:
            made[key] = entry
        else:
            stacks.setdefault(piece.tensor, {})[piece.index] = key
    alone = {key for members in stacks.values() for key in members.values()}
    held = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in alone}
    for name, members in stacks.items():
        order = [members[index] for index in sorted(members)]
        first, piece = entries[order[0]], pieces[order[0]]
        number = torch.Size(piece.stored[:-2]).numel()
        ranks = [entries[members[index]].rank if index in members else 0 for index in range(number)]
        bits = first.bits if isinstance(first, LowRankEntry) else 16
        made[name] = StackedEntry(shape=piece.stored, ranks=ranks, bits=bits)
        held[f"{name}.A"] = torch.cat([tensors[f"{key}.A"] for key in order], dim=1)
        held[f"{name}.B"] = torch.cat([tensors[f"{key}.B"] for key in order])
        if bits != 16:
            scales = torch.zeros(number, piece.shape[0], dtype=torch.float16)
            for index, key in members.items():
                scales[index] = tensors[f"{key}.A_scale"]
            held[f"{name}.A_scale"] = scales
            held[f"{name}.B_scale"] = torch.cat([tensors[f"{key}.B_scale"] for key in order])
    return made, held
