"""One pack prepared for a model: the changes added to outputs of modules, and the tensors exchanged in the model.

A change can differ from row to row of a batch if the module's input is known row by row, and if the module does nothing
but multiply with (or look up in) its weight (:mod:`skillweave.base.feeding`). All other changes (of experts,
state-space weights, weights that other code reads) are exchanged in the model itself, during batches of this pack
alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import nn

from skillweave.base.feeding import Fed
from skillweave.base.layout import Layout, Place, owners
from skillweave.errors import UserError, nearest
from skillweave.pack import (
    Entry,
    FactorsEntry,
    GroupedEntry,
    LowRank,
    LowRankEntry,
    MixedEntry,
    RowsEntry,
    Skillpack,
    WholeEntry,
)
from skillweave.pack.decode import coded_matrix, mixed_factors
from skillweave.pack.expected import expected_tensors
from skillweave.pack.vocabulary import TokenRows, token_rows
from skillweave.weave.coded_factors import CodedFactors, Groups, LaidOutFactors, Target
from skillweave.weave.int8 import Int8Linear


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


class Places:
    """Prepares packs for one model: it knows which modules hold which tensor, and how their inputs are fed."""

    def __init__(self, model: Any, fed: Mapping[str, Fed], values: AbstractContextManager[Any]) -> None:
        """``values`` is entered while values of the model are read, which a batch in another thread may exchange."""
        self._model = model
        self._values = values
        self._layout = Layout(model)
        self._fed = fed
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._owners = owners(model)

    def prepare(self, name: str, pack: Skillpack, *, laid_out: bool = False) -> Resident:
        """Prepare a pack under ``name``; ``laid_out`` says that its integer factors stay unpacked as long as it lives.

        Raises :class:`UserError` for a tensor that the model does not have, or has in another shape.
        """
        ready = Resident(name)
        ready.tokens = token_rows(self._model, name, pack.token_rows())
        joined: dict[str, list[str]] = {}
        coded: dict[torch.device, dict[str, list[str]]] = {}
        for tensor, entry in pack.card.entries.items():
            if isinstance(entry, RowsEntry):
                continue
            target, is_joined = self._layout.place(tensor)
            if is_joined and self._layout.parts(target):
                joined.setdefault(target, []).append(tensor)
                continue
            if target not in self._owners:
                raise UserError(
                    f"the pack '{name}' changes '{tensor}', which the model does not have; "
                    f"{nearest(tensor, self._owners)}"
                )
            original, places = self._owners[target]
            if tuple(original.shape) != tuple(entry.shape):
                raise UserError(
                    f"the pack '{name}': '{tensor}' is {tuple(entry.shape)} and the base's is {tuple(original.shape)}. "
                    f"A tensor that changes its shape (added tokens) cannot differ from row to row: serve this skill "
                    f"alone, from Skillpack.from_pretrained(...).unzip() applied to the base."
                )
            self._place(ready, coded, pack, tensor, entry, original, places)
        for device, modules in coded.items():
            _code(ready, pack, device, modules, LaidOutFactors if laid_out else CodedFactors)
        for target, tensors in joined.items():
            self._exchange_joined(ready, pack, target, tensors)
        return ready

    def _place(
        self,
        ready: Resident,
        coded: dict[torch.device, dict[str, list[str]]],
        pack: Skillpack,
        tensor: str,
        entry: Entry,
        original: torch.Tensor,
        places: list[Place],
    ) -> None:
        """Prepare one tensor. A low-rank one is only noted in ``coded``: device -> tensor -> modules."""
        reason = self._reason(entry, original, places)
        if reason is not None:
            ready.reasons[tensor] = reason
            if reason is not _UNKNOWN_ROWS:
                ready.exchanged.append(self._exchange(pack, tensor, entry, original, places))
                return
        if isinstance(entry, LowRankEntry):
            for module, _ in places:
                if self._fed[module].law == "lookup":
                    parts = pack.lowrank_parts(tensor)
                    ready.lookups[module] = Lookup.of(parts, original.device, self._fed[module].scale)
                else:
                    coded.setdefault(original.device, {}).setdefault(tensor, []).append(module)
        elif _is_factors(entry):
            dtype = original.dtype if original.is_floating_point() else self._model.dtype
            # One copy for all places of a tied tensor.
            kept = tuple(factor.to(original.device, dtype) for factor in _float_factors(pack, tensor, entry))
            for module, _ in places:
                if self._fed[module].law == "lookup":
                    ready.lookups[module] = Lookup.of_floats(kept, self._fed[module].scale)
                else:
                    ready.float_factors[module] = kept
        else:
            with self._values:
                tuned = self._tuned(pack, tensor, entry, original, places[0])
            for module, _ in places:
                ready.changed.setdefault(module, {}).update(tuned)

    def _reason(self, entry: Entry, original: torch.Tensor, places: list[Place]) -> str | None:
        """The reason why a tensor cannot differ from row to row, or None if it can.

        With the reason :data:`_UNKNOWN_ROWS` it can still be added to the outputs of all rows together.
        """
        if not isinstance(original, nn.Parameter):
            return "is a buffer"
        reason = None
        for module, _ in places:
            fed = self._fed.get(module)
            if fed is None:
                return "is used by other code than its module's, or its module takes or gives more than one tensor"
            if isinstance(entry, LowRankEntry) or _is_factors(entry):
                laws = {"transposed"} if entry.transposed else {"linear", "lookup"}
                if fed.law not in laws:
                    return f"is not the weight of a plain linear layer, but of a {type(self._modules[module]).__name__}"
            elif fed.rows == "any" or next(self._modules[module].children(), None) is not None:
                return "belongs to a module whose input is not known row by row"
            if fed.rows == "any":
                reason = _UNKNOWN_ROWS
        return reason

    def _exchange_joined(self, ready: Resident, pack: Skillpack, target: str, tensors: list[str]) -> None:
        """Prepare tensors that are parts of one tensor of the model: transformers joins them when it loads a model."""
        parts = set(self._layout.parts(target))
        for tensor in tensors:
            if tensor not in parts or isinstance(pack.card.entries[tensor], WholeEntry):
                raise UserError(
                    f"the pack '{ready.name}' changes '{tensor}', which transformers joins into '{target}' while "
                    f"loading, but not in this form: serve this skill alone, from Skillpack.unzip() applied to the base"
                )
            ready.reasons[tensor] = "is one of several that the model holds in one tensor"

        own = _only(pack, tensors)

        def read(name: str) -> torch.Tensor | None:
            return own.decode(name) if name in own.card.entries else None

        def make() -> dict[str, torch.Tensor]:
            changes = self._layout.joined(target, read)
            made: dict[str, torch.Tensor] = {}
            for name, change in changes.items():
                original, places = self._owners[name]
                made |= _named(places[0], self._sum(original, change, places[0]))
            return made

        ready.exchanged.append(Exchange(make, _tensor_bytes(own)))

    def _exchange(
        self, pack: Skillpack, tensor: str, entry: Entry, original: torch.Tensor, places: list[Place]
    ) -> Exchange:
        own = _only(pack, [tensor])

        def make() -> dict[str, torch.Tensor]:
            return _named(places[0], self._tuned(own, tensor, entry, original, places[0]))

        return Exchange(make, _tensor_bytes(own))

    def _tuned(
        self, pack: Skillpack, tensor: str, entry: Entry, original: torch.Tensor, place: Place
    ) -> dict[str, torch.Tensor]:
        """The tuned values of one tensor, by the names of the module's own tensors that hold them."""
        if not isinstance(entry, WholeEntry):
            return self._sum(original, pack.decode(tensor), place)
        layer = self._int8_layer(place)
        whole = pack.tensors[tensor].to(original.device)
        return {place[1]: whole.to(original.dtype)} if layer is None else dict(layer.coded(whole))

    def _sum(self, original: torch.Tensor, change: torch.Tensor, place: Place) -> dict[str, torch.Tensor]:
        """As :meth:`_tuned`, for a change of the base's values. In int8, the sum is rounded as the base was."""
        layer, change = self._int8_layer(place), change.to(original.device).float()
        if layer is not None:
            return dict(layer.coded(layer.decoded() + change))
        return {place[1]: (original.detach().float() + change).to(original.dtype)}

    def _int8_layer(self, place: Place) -> Int8Linear | None:
        """The layer in int8 whose weight this place is, or None."""
        module = self._modules[place[0]]
        return module if isinstance(module, Int8Linear) and place[1] == "weight" else None


_UNKNOWN_ROWS = "belongs to a layer whose input is not known row by row"


def _code(
    ready: Resident,
    pack: Skillpack,
    device: torch.device,
    modules: Mapping[str, list[str]],
    form: type[CodedFactors | LaidOutFactors],
) -> None:
    """Keep the low-rank tensors (tensor -> the modules that hold it) of one device."""
    targets = []
    for tensor, places in modules.items():
        entry = pack.card.entries[tensor]
        assert isinstance(entry, LowRankEntry)
        # Packs of one model name the same groups: one string for all of them.
        targets.append(Target(tensor, sys.intern(entry.group), tuple(places)))
        if entry.smooth and entry.group not in ready.unsmooth:
            ready.unsmooth[entry.group] = (1 / pack.tensors[f"{entry.group}.smooth"].float()).to(device)
    try:
        ready.coded.append(form(targets, pack.lowrank_parts, device))
    except ValueError as error:
        raise UserError(f"the pack '{ready.name}' cannot be loaded: {error}. Make the pack again.") from error


def _is_factors(entry: Entry) -> TypeGuard[FactorsEntry | GroupedEntry | MixedEntry]:
    """Whether the change is one matrix that is added to a module's output in floats."""
    return isinstance(entry, FactorsEntry) or (isinstance(entry, GroupedEntry | MixedEntry) and not entry.stacked)


def _float_factors(
    pack: Skillpack, tensor: str, entry: FactorsEntry | GroupedEntry | MixedEntry
) -> tuple[torch.Tensor, ...]:
    """The factors of a matrix as floats: (A, B), or (the matrix,) if it has none."""
    if isinstance(entry, FactorsEntry):
        return pack.tensors[f"{tensor}.A"], pack.tensors[f"{tensor}.B"]
    if isinstance(entry, MixedEntry):
        return mixed_factors(pack.tensors, tensor, entry)
    return (coded_matrix(pack.tensors, tensor, entry),)


def _named(place: Place, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a place's module by their names in the model."""
    module = place[0]
    return {f"{module}.{own}" if module else own: tensor for own, tensor in tensors.items()}


def _only(pack: Skillpack, names: Sequence[str]) -> Skillpack:
    """The pack with these entries alone, so that the rest of it need not be kept in memory for them."""
    entries = {name: pack.card.entries[name] for name in names}
    needed = {key: pack.tensors[key] for name, entry in entries.items() for key in expected_tensors(name, entry)}
    return Skillpack(pack.card.model_copy(update={"entries": entries}), needed)


def _tensor_bytes(pack: Skillpack) -> int:
    return sum(tensor.nbytes for tensor in pack.tensors.values())
