"""How far a pack is from its delta, over all tensors that changed: what is left out counts in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from skillweave.base import Checkpoint
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack, StackedEntry, WholeEntry
from skillweave.pack.left_out import MOST_LEFT_OUT, named_shares
from skillweave.progress import bar
from skillweave.skillzip.plan import added
from skillweave.skillzip.rows import resized, shared_change


@dataclass(frozen=True)
class Losses:
    """``error``: ||R - D|| / ||R|| over all changed tensors. ``shares``: of ||R||^2, by tensor that lacks all or part
    of its change; ``left_out``: their sum."""

    error: float
    shares: dict[str, float]

    @property
    def left_out(self) -> float:
        return sum(self.shares.values())


def measure(pack: Skillpack, delta: Delta, checkpoint: Checkpoint) -> Losses:
    """The :class:`Losses` of a pack, read tensor by tensor."""
    lost = total = 0.0
    absent: dict[str, float] = {}
    with bar("measuring", len(delta.names())) as advance:
        for name in delta.names():
            entry = pack.card.entries.get(name)
            wanted = (delta.tensor(name) if added(checkpoint, name) else change(delta, checkpoint, name)).float()
            energy = _energy(wanted)
            total += energy
            if entry is None:
                absent[name] = energy
                lost += energy
            elif isinstance(entry, WholeEntry):
                lost += _energy(wanted - pack.tensors[name].float())
            else:
                lost += _energy(wanted - pack.decode(name))
            if isinstance(entry, StackedEntry) and 0 in entry.ranks:
                parts = wanted.view(-1, *entry.shape[-2:])
                absent[name] = sum(_energy(parts[at]) for at, rank in enumerate(entry.ranks) if not rank)
            advance()
    return Losses(
        (lost / total) ** 0.5 if total else 0.0, {name: found / total for name, found in absent.items() if total}
    )


def too_much_left_out(losses: Losses, name: str) -> str:
    """The message for a pack that would leave out too much: how much, of what, and what to do."""
    return (
        f"the pack '{name}' would leave out {losses.left_out:.1%} of the change (of the delta's squared norm), more "
        f"than {MOST_LEFT_OUT:.0%}: {named_shares(losses.shares)}. Raise ratio or budget, or set other=keep; to "
        f"make the pack without them, say --allow-left-out (allow_left_out: true)."
    )


def change(delta: Delta, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """theta - theta_base of one tensor, in the base's shape.

    That is also where the delta has it whole but the base has its like (a LoRA's ``modules_to_save``), and where tokens
    were added or trimmed. A tensor with NaN or infinity is a :class:`UserError`.
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
    return float(tensor.square().sum(dtype=torch.float64))
