"""One pack prepared for a model: the changes added to outputs of modules, and the tensors exchanged in the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from skillweave.pack import LowRank
from skillweave.pack.vocabulary import TokenRows
from skillweave.weave.coded_factors import CodedFactors, Groups, LaidOutFactors


@dataclass(frozen=True)
class Lookup:
    """The change of an embedding (vocabulary, width): a token's vector changes by ``scale left[id] right``."""

    left: torch.Tensor
    """(vocabulary, rank): int8 codes, or floats; (vocabulary, width) if there is no ``right``"""
    left_scale: torch.Tensor | None
    """float32 (vocabulary,) of the codes"""
    right: torch.Tensor | None
    """(rank, width), float; multiplied by the embedding's own scale. None: ``left`` is the change itself"""

    @classmethod
    def of(cls, parts: LowRank, device: torch.device, scale: float) -> Lookup:
        right = parts.B.float() * parts.B_scale.float()[:, None] * scale
        return cls(parts.A.to(device), parts.A_scale.float().to(device), right.to(device))

    @classmethod
    def of_floats(cls, factors: tuple[torch.Tensor, ...], scale: float) -> Lookup:
        """The change by the factors (A, B), or by a matrix (vocabulary, width) without factors."""
        if len(factors) == 1:
            return cls(factors[0] if scale == 1 else factors[0] * scale, None, None)
        return cls(factors[0], None, factors[1].float() * scale)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """The change of the looked-up vectors: ids (n, T) -> float32 (n, T, width)."""
        left = self.left[ids].float()
        if self.left_scale is not None:
            left = left * self.left_scale[ids][..., None]
        return left if self.right is None else left @ self.right.float()

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Lookup:
        """A copy with the tensors that ``change`` gives."""
        scale, right = (None if tensor is None else change(tensor) for tensor in (self.left_scale, self.right))
        return Lookup(change(self.left), scale, right)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [tensor for tensor in (self.left, self.left_scale, self.right) if tensor is not None]


@dataclass(frozen=True)
class Exchange:
    """Tensors of the model that hold tuned values while a batch of this pack is running."""

    make: Callable[[], dict[str, torch.Tensor]]
    """the tuned tensors by name, in the base's dtype; called when a batch begins"""
    nbytes: int
    """bytes that the pack keeps in memory for them"""


@dataclass
class Resident:
    """One pack prepared for the model's device, before or after :meth:`~skillweave.weave.PackedModel.add`."""

    name: str
    coded: list[CodedFactors | LaidOutFactors] = field(default_factory=list)
    """the integer factors, for each device"""
    unsmooth: dict[str, torch.Tensor] = field(default_factory=dict)
    """group -> 1 / smooth"""
    float_factors: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    """module -> (A, B) of a matrix without integer factors, or (the matrix itself,) if it has no factors"""
    lookups: dict[str, Lookup] = field(default_factory=dict)
    """embedding -> the change of its vectors"""
    changed: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """module -> its own parameter -> the tuned tensor, in the base's dtype"""
    tokens: TokenRows | None = None
    """the token rows, if the pack has other tokens than the base"""
    exchanged: list[Exchange] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    """tensor -> why its change cannot differ from row to row"""

    @property
    def alone(self) -> bool:
        """Whether the pack needs batches of its own."""
        return bool(self.reasons)

    @property
    def why(self) -> str:
        """Why it needs batches of its own, with the first such tensor as the example."""
        name, reason = next(iter(self.reasons.items()))
        more = f" (and {len(self.reasons) - 1} more tensors)" if len(self.reasons) > 1 else ""
        return f"'{name}' {reason}{more}"

    @property
    def nbytes(self) -> int:
        """The bytes that the pack takes while no batch has unpacked it."""
        floats = [tensor for factors in self.float_factors.values() for tensor in factors]
        floats += [tensor for lookup in self.lookups.values() for tensor in lookup.tensors]
        floats += [tensor for tensors in self.changed.values() for tensor in tensors.values()]
        # A tied tensor is named by two modules and stored once.
        kept = {id(tensor): tensor for tensor in floats}
        coded = sum(coded.nbytes for coded in self.coded)
        exchanged = sum(exchange.nbytes for exchange in self.exchanged)
        rows = self.tokens.nbytes if self.tokens is not None else 0
        return coded + exchanged + rows + sum(t.nbytes for t in (*self.unsmooth.values(), *kept.values()))

    @property
    def unpacked_nbytes(self) -> int:
        """The bytes that the integer factors take in addition while they are unpacked."""
        return sum(coded.laid_out_nbytes for coded in self.coded)

    @property
    def widened_nbytes(self) -> int:
        """The bytes that the integer factors take in addition while steps of ``PackedModel.tokens`` use them."""
        return sum(coded.widened_nbytes for coded in self.coded)

    @property
    def most_nbytes(self) -> int:
        """The most bytes that the pack takes: while it is unpacked, and steps use it."""
        return self.nbytes + self.unpacked_nbytes + self.widened_nbytes

    @property
    def widths(self) -> dict[str, int]:
        """The number of inputs of the matrices of each group."""
        return {group: width for coded in self.coded for group, width in coded.widths.items()}

    @property
    def modules(self) -> list[str]:
        """The modules whose output the pack changes row by row."""
        factors = [module for coded in self.coded for module in coded.modules]
        return [*factors, *self.float_factors, *self.lookups, *self.changed]

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Resident:
        """A copy with the tensors that ``change`` gives; one that is named twice is given once, in a fixed order.

        Exchanged tensors and token rows stay as they are.
        """
        made: dict[int, torch.Tensor] = {}

        def once(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = change(tensor)
            return made[id(tensor)]

        return replace(
            self,
            coded=[coded.with_tensors(once) for coded in self.coded],
            unsmooth={group: once(tensor) for group, tensor in self.unsmooth.items()},
            float_factors={module: tuple(map(once, factors)) for module, factors in self.float_factors.items()},
            lookups={module: lookup.with_tensors(once) for module, lookup in self.lookups.items()},
            changed={
                module: {name: once(tensor) for name, tensor in tensors.items()}
                for module, tensors in self.changed.items()
            },
        )

    def unpacked(self) -> Groups:
        """The integer factors, laid out for the products."""
        groups: Groups = {}
        for coded in self.coded:
            for group, factors in coded.laid_out().items():
                groups.setdefault(group, {}).update(factors)
        return groups
