"""A pack before its matrices are encoded: everything else it contains, and the bytes that are left for them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from skillweave.base.safetensors_io import Spec
from skillweave.delta.carry import Carried
from skillweave.errors import TooSmall
from skillweave.pack import DifferenceEntry, Entry, FactorsEntry, GroupedEntry, LowRankEntry, MixedEntry, Skillpack
from skillweave.pack.coded import encode_parts
from skillweave.pack.expected import expected_tensors
from skillweave.pack.schema import PackCard
from skillweave.pack.weigh import plain_sizes, weigh
from skillweave.skillzip.losses import Losses
from skillweave.skillzip.plan import Plan
from skillweave.skillzip.stacks import joined_entries, joined_tensors

_RESERVED_SHARE = 0.001
_RESERVED_BYTES = 64
"""This share of the limit, and these bytes, stay free for what the card gets after the zip: scores and the audit."""
_LONGER_LIMIT = 8
"""Bytes that the card may grow by when a larger limit, which it states, has more digits."""
_LONGEST_ERROR, _LONGEST_SHARE = 0.1234, 0.00012
"""No error and no share is longer than these in the card's JSON: a pack is weighed before they are measured."""
_NAMED = 5
"""The number of tensors that a message names; of the others it says how many there are."""

MatrixEntry = LowRankEntry | FactorsEntry | GroupedEntry | MixedEntry | DifferenceEntry
NO_LIMIT = sys.maxsize
"""The limit of a pack that may take any number of bytes."""


@dataclass(frozen=True)
class Encoded:
    """The matrices as a codec wrote them: an entry for each key of the plan, and the tensors of these entries."""

    entries: Mapping[str, MatrixEntry]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Draft:
    """A pack without its matrices, which a codec encodes within :attr:`budget`."""

    card: PackCard
    """what is known before the codec runs: the entries of the other tensors, and which tensors are left out"""
    tensors: Mapping[str, torch.Tensor]
    """the tensors of those entries"""
    carried: Carried
    """the files that travel along"""
    plan: Plan
    """the matrices that a codec may write"""
    limit: int
    """the most bytes that the folder may ever take"""
    allow_left_out: bool

    @property
    def budget(self) -> int:
        """The bytes that the folder may take now: the limit, less what is reserved for later additions to the card."""
        return unreserved(self.limit)

    def free_bytes(self, matrices: Mapping[str, MatrixEntry]) -> int:
        """Return the bytes of the budget that are left with these matrices in the pack; negative if they do not fit."""
        return self.budget - self.bytes_with(matrices)

    def free_with(self, encoded: Encoded) -> int:
        """Return what :meth:`free_bytes` does, for matrices whose bytes are only known when they are encoded."""
        card, tensors = self._heaviest_card(encoded.entries), self.all_tensors(encoded)
        if not card.coded:
            return self.free_bytes(encoded.entries)
        return self.budget - weigh(card, encode_parts(card, tensors).sizes, self.carried).total

    def refusal(self, least: int, *, partial: bool = False) -> TooSmall:
        """Return the error for a budget that cannot even hold a pack of ``least`` bytes.

        ``partial`` says that the codec can leave matrices out, and that this pack has those that it must not leave out.
        """
        need = limit_for(least)
        largest = sorted(self.tensors, key=lambda name: -self.tensors[name].nbytes)
        named = ", ".join(largest[:_NAMED]) + (f" and {len(largest) - _NAMED} more" if len(largest) > _NAMED else "")
        fixed = sum(tensor.nbytes for tensor in self.tensors.values())
        others = f", {fixed} of them for {named}" if largest else ""
        most = partial and not self.allow_left_out
        purpose = " to hold most of the change" if most else ""
        advice = ", or accept a partial pack with --allow-left-out (allow_left_out: true)" if most else ""
        return TooSmall(
            f"a budget of {self.limit} bytes is too small for the pack '{self.card.name}': the least that it "
            f"needs is {need} bytes{purpose}{others}. Raise ratio or budget{advice}.",
            need,
        )

    def entries(self, matrices: Mapping[str, MatrixEntry]) -> dict[str, Entry]:
        """Return the entries of the whole pack; the matrices of a stack are one entry."""
        return {**joined_entries(self.plan.pieces, matrices), **self.card.entries}

    def all_tensors(self, encoded: Encoded) -> dict[str, torch.Tensor]:
        """Return the tensors of the whole pack, by their names in the file."""
        return {**self.tensors, **joined_tensors(self.plan.pieces, encoded.entries, encoded.tensors)}

    def pack(self, encoded: Encoded, losses: Losses) -> Skillpack:
        """Return the finished pack. Its card names the tensors that the codec left out, and states the losses."""
        card = self._card(encoded.entries, losses)
        pack = Skillpack(card, self.all_tensors(encoded), self.carried)
        card.bytes = pack.weighed()
        return pack

    def _card(self, matrices: Mapping[str, MatrixEntry], losses: Losses) -> PackCard:
        entries = self.entries(matrices)
        incomplete = self._incomplete(matrices)
        ranks = sorted(filter(None, (getattr(entry, "rank", 0) for entry in matrices.values())))
        measured: dict[str, Any] = {
            **self.card.codec.measured,
            "weight_error": round(losses.error, 4),
            "left_out_share": _rounded(losses.left_out),
            "matrices": len(matrices),
            "rank": {"least": ranks[0], "median": ranks[len(ranks) // 2], "most": ranks[-1]} if ranks else {},
        }
        if incomplete:
            measured["left_out"] = {name: _rounded(losses.shares.get(name, 0.0)) for name in incomplete}
        return self.card.model_copy(
            update={
                "entries": entries,
                "left_out": [name for name in incomplete if name not in entries],
                "codec": self.card.codec.model_copy(update={"measured": measured}),
            }
        )

    def _incomplete(self, matrices: Mapping[str, MatrixEntry]) -> list[str]:
        """Return the changed tensors that are left out, or are stacks without some of their matrices."""
        without = (piece.tensor for key, piece in self.plan.pieces.items() if key not in matrices)
        return list(dict.fromkeys((*self.card.left_out, *without)))

    def bytes_with(self, matrices: Mapping[str, MatrixEntry]) -> int:
        """Return the bytes of the folder with these matrices in the pack, without making a tensor."""
        card = self._heaviest_card(matrices)
        specs: dict[str, Spec] = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors.items()}
        for name, entry in joined_entries(self.plan.pieces, matrices).items():
            for key, (shape, dtype) in expected_tensors(name, entry).items():
                # Codecs write differences, whose type is free, in bf16.
                specs[key] = shape, getattr(torch, dtype or "bfloat16")
        return weigh(card, plain_sizes(card, specs), self.carried).total

    def _heaviest_card(self, matrices: Mapping[str, MatrixEntry]) -> PackCard:
        """Return a card that is at least as long as the one of the finished pack, whose losses are measured later."""
        longest = Losses(_LONGEST_ERROR, dict.fromkeys(self._incomplete(matrices), _LONGEST_SHARE), _LONGEST_SHARE)
        return self._card(matrices, longest)


def limit_for(nbytes: int) -> int:
    """Return the least limit under which a pack of ``nbytes`` fits."""
    return math.ceil((nbytes + _LONGER_LIMIT + _RESERVED_BYTES) / (1 - _RESERVED_SHARE))


def unreserved(limit: int) -> int:
    """Return the bytes of a limit that are left without what is reserved for later additions to the card."""
    return limit - int(_RESERVED_SHARE * limit) - _RESERVED_BYTES


def _rounded(share: float) -> float:
    """Return a share with two digits, never longer than :data:`_LONGEST_SHARE` as JSON."""
    return float(f"{share:.2g}") if share > 1e-9 else 0.0
