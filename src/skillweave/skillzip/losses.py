"""Measure how far a pack is from its delta, over all tensors that changed; what is left out counts in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from skillweave.base import Checkpoint
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Entry, StackedEntry, WholeEntry
from skillweave.pack.decode import decode
from skillweave.pack.left_out import MOST_LEFT_OUT, named_shares
from skillweave.progress import bar
from skillweave.skillzip.plan import added
from skillweave.skillzip.rows import resized, shared_change


@dataclass(frozen=True)
class Losses:
    """What a pack loses of a delta R, all changed tensors together; D is what the pack gives back."""

    error: float
    """||R - D|| / ||R||"""
    shares: dict[str, float]
    """the share of ||R||^2 that is missing entirely, for each tensor that lacks its change, or matrices of it"""
    left_out: float
    """the sum of the shares"""


def measure(
    entries: Mapping[str, Entry], tensors: Mapping[str, torch.Tensor], delta: Delta, checkpoint: Checkpoint
) -> Losses:
    """Return the :class:`Losses` of a pack with these entries and tensors, compared tensor by tensor."""
    lost = total = 0.0
    missing: dict[str, float] = {}
    with bar("measuring", len(delta.names())) as advance:
        for name in delta.names():
            entry = entries.get(name)
            wanted = (delta.tensor(name) if added(checkpoint, name) else change(delta, checkpoint, name)).float()
            energy = _energy(wanted)
            total += energy
            if entry is None:
                missing[name] = energy
                lost += energy
            elif isinstance(entry, WholeEntry):
                lost += _energy(wanted - tensors[name].float())
            else:
                lost += _energy(wanted - decode(tensors, name, entry))
            if isinstance(entry, StackedEntry) and 0 in entry.ranks:
                matrices = wanted.view(-1, *entry.shape[-2:])
                missing[name] = sum(_energy(matrices[at]) for at, rank in enumerate(entry.ranks) if not rank)
            advance()
    shares = {name: energy / total for name, energy in missing.items() if total}
    return Losses((lost / total) ** 0.5 if total else 0.0, shares, sum(shares.values()))


def too_much_left_out(losses: Losses, name: str) -> str:
    """Return the message for a pack that would leave out too much: how much, of which tensors, and what to do."""
    return (
        f"the pack '{name}' would leave out {losses.left_out:.1%} of the change (of the delta's squared norm), more "
        f"than {MOST_LEFT_OUT:.0%}: {named_shares(losses.shares)}. Raise ratio or budget, or set other=keep. To "
        f"make the pack without them, use --allow-left-out (allow_left_out: true)."
    )


def change(delta: Delta, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Return theta - theta_base of one tensor, in the base's shape.

    This also holds if the delta stores the tensor whole although the base has it (a LoRA's ``modules_to_save``), and if
    tokens were added or trimmed. Raises :class:`UserError` for NaN or infinity.
    """
    tensor = delta.tensor(name)
    if resized(delta, checkpoint, name):
        tensor = shared_change(delta, checkpoint, name)
    elif delta.whole(name):
        tensor = tensor.float() - checkpoint.tensor(name).float().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"the delta of '{name}' holds NaN or infinity: the training run diverged; zip an earlier one")
    return tensor


def _energy(tensor: torch.Tensor) -> float:
    """Return the squared norm, summed in float64."""
    return float(tensor.square().sum(dtype=torch.float64))
