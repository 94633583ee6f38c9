"""What a codec is given and what it gives back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from skillweave.delta.carry import Carried
from skillweave.errors import UserError
from skillweave.pack import FactorsEntry, LowRankEntry, Skillpack
from skillweave.pack.schema import PackCard, expected_tensors
from skillweave.skillzip.calibrate import Moments
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.plan import Plan
from skillweave.skillzip.stacks import joined

_LATER = 0.001
_LATER_BYTES = 64
"""This share of the limit, and these bytes, stay free for what the card is given after the zip: scores, the audit."""

_NAMED = 5
"""Tensors that a message names; of the others it gives the number."""

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
    plan: Plan
    """the matrices, and which of them are fed by one input"""
    read: Callable[[str], torch.Tensor]
    """the delta of one matrix, float32 (out, in), read when asked for"""
    moments: Callable[[list[str]], dict[str, Moments]]
    """:class:`Moments` of those among the groups that calibration can watch; one pass of the calibration set"""
    card: PackCard
    """the card without the matrices"""
    limit: int
    """bytes that the three files may ever take"""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """the pack's other tensors, whose entries the card has"""
    left: list[str] = field(default_factory=list)
    """changed tensors that are left out whatever the codec does"""
    carried: Carried = field(default_factory=Carried)
    """what travels along"""

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each matrix, by its key, in the plan's order."""
        return {key: piece.shape for key, piece in self.plan.pieces.items()}

    @property
    def budget(self) -> int:
        """Bytes that the three files may take now: the limit less what is kept free for :data:`_LATER`."""
        return self.limit - int(_LATER * self.limit) - _LATER_BYTES

    def finished(self, written: Written, measured: Mapping[str, Any]) -> Skillpack:
        """The whole pack. Tensors that the codec left out are added to the card's list.

        ``codec.measured`` has ``left_out``, blank: a share for each tensor that is left out, or that lacks matrices.
        """
        entries, tensors = joined(self.plan.pieces, written.entries, written.tensors)
        lacking = dict.fromkeys(piece.tensor for key, piece in self.plan.pieces.items() if key not in written.entries)
        card = self.card.model_copy(deep=True)
        card.left_out = [*self.card.left_out, *(name for name in lacking if name not in entries)]
        short = [*self.left, *lacking]
        card.entries = {**entries, **card.entries}
        card.codec.measured = {**({"left_out": dict.fromkeys(short, BLANK_SHARE)} if short else {}), **measured}
        return Skillpack(card, {**self.tensors, **tensors}, self.carried)

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
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in self.tensors.items()}
        largest = sorted(sizes, key=lambda name: -sizes[name])
        named = ", ".join(largest[:_NAMED]) + (f" and {len(largest) - _NAMED} more" if len(largest) > _NAMED else "")
        held = f", {sum(sizes.values())} of them for {named}" if sizes else ""
        whole = "" if self.config.allow_left_out else " to hold most of the change"
        smaller = "" if self.config.allow_left_out else "; --allow-left-out (allow_left_out: true) makes do with less"
        return UserError(
            f"a budget of {self.limit} bytes is too small for the pack '{self.card.name}': the least that it "
            f"needs is {need} bytes{whole}{held}. Raise ratio or budget{smaller}."
        )


def measures(error: float, left_out: float, ranks: list[int]) -> dict[str, Any]:
    """What the card keeps of a zip: the relative error of the weights, ||R - D|| / ||R|| over all changed tensors, the
    share of ||R||^2 that lies in what is left out, and the ranks given."""
    ranks = sorted(ranks)
    spread = {"least": ranks[0], "median": ranks[len(ranks) // 2], "most": ranks[-1]} if ranks else {}
    told = {"weight_error": round(error, 4), "left_out_share": shown_share(left_out)}
    return {**told, "matrices": len(ranks), "rank": spread}


def shown_share(share: float) -> float:
    """A share with two digits, never longer than :data:`BLANK_SHARE` as JSON."""
    return float(f"{share:.2g}") if share > 1e-9 else 0.0


BLANK_SHARE = 0.00012
BLANK_MEASURES = {
    "weight_error": 0.1234,
    "left_out_share": BLANK_SHARE,
    "matrices": 99999,
    "rank": {"least": 99999, "median": 99999, "most": 99999},
}
"""As long as any that :func:`measures` gives, to weigh a pack before it is made."""
