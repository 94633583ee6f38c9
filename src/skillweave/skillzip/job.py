"""What a codec is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from skillweave.delta.carry import Carried
from skillweave.errors import UserError
from skillweave.pack import Entry, FactorsEntry, LowRankEntry, Skillpack
from skillweave.pack.schema import PackCard, expected_tensors
from skillweave.skillzip.calibrate import Moments
from skillweave.skillzip.config import ZipConfig

_LATER = 0.001
_LATER_BYTES = 64
"""This share of the limit, and these bytes, stay free for what the card is given after the zip: scores, the audit."""

MatrixEntry = LowRankEntry | FactorsEntry


@dataclass(frozen=True)
class Written:
    """The matrices as a codec wrote them: their entries, and the tensors those name."""

    entries: dict[str, MatrixEntry]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """The changed matrices of one delta, and the bytes they may take."""

    config: ZipConfig
    shapes: Mapping[str, tuple[int, int]]
    """(out, in) of each matrix, in the model's order"""
    groups: Mapping[str, list[str]]
    """the matrices fed by one input, by the group's name; every matrix is in one group"""
    read: Callable[[str], torch.Tensor]
    """the delta of one matrix, float32 (out, in), read when asked for"""
    moments: Callable[[list[str]], dict[str, Moments]]
    """:class:`Moments` of some groups; one pass of the calibration set through the base"""
    card: PackCard
    """the card without the matrices"""
    limit: int
    """bytes that the three files may ever take"""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """the pack's other tensors, whose entries the card has"""
    carried: Carried = field(default_factory=Carried)
    """what travels along"""

    @property
    def budget(self) -> int:
        """Bytes that the three files may take now: the limit less what is kept free for :data:`_LATER`."""
        return self.limit - int(_LATER * self.limit) - _LATER_BYTES

    def finished(self, written: Written, measured: Mapping[str, Any]) -> Skillpack:
        """The whole pack. Matrices that the codec left out are added to the card's list."""
        left_out = [*self.card.left_out, *(name for name in self.shapes if name not in written.entries)]
        card = self.card.model_copy(deep=True)
        entries: dict[str, Entry] = {**written.entries, **card.entries}
        card.entries = entries
        card.left_out = left_out
        card.codec.measured = {**card.codec.measured, **measured}
        return Skillpack(card, {**self.tensors, **written.tensors}, self.carried)

    def free_bytes(self, entries: Mapping[str, MatrixEntry]) -> int:
        """Bytes of the budget that are left with these matrices in the pack; negative where they do not fit."""
        blank = {
            key: torch.zeros(shape, dtype=getattr(torch, dtype or "float32"))
            for name, entry in entries.items()
            for key, (shape, dtype) in expected_tensors(name, entry).items()
        }
        return self.budget - self.finished(Written(dict(entries), blank), BLANK_MEASURES).nbytes

    def refuse(self, least: Mapping[str, MatrixEntry]) -> UserError:
        """The error for a budget that cannot hold even ``least``."""
        need = int((self.budget - self.free_bytes(least) + _LATER_BYTES) / (1 - _LATER)) + 8  # a budget of more digits
        whole = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
        held = f", {whole} of them for {', '.join(self.tensors)}" if self.tensors else ""
        return UserError(
            f"a budget of {self.limit} bytes is too small for the pack '{self.card.name}': the least that it "
            f"needs is {need} bytes{held}. Raise ratio or budget."
        )


def measures(error: float, ranks: list[int]) -> dict[str, Any]:
    """What the card keeps of a zip: the relative error of the weights, ||R - D|| / ||R|| over all the changed matrices,
    and the ranks given."""
    ranks = sorted(ranks)
    spread = {"least": ranks[0], "median": ranks[len(ranks) // 2], "most": ranks[-1]} if ranks else {}
    return {"weight_error": round(error, 4), "matrices": len(ranks), "rank": spread}


BLANK_MEASURES = {"weight_error": 0.1234, "matrices": 99999, "rank": {"least": 99999, "median": 99999, "most": 99999}}
"""As long as any that :func:`measures` gives, to weigh a pack before it is made."""
