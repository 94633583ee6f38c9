"""Prepare packs for a model: find the place of each tensor, and whether its change can differ from row to row.

It can if the module's input is known row by row, and if the module does nothing but multiply with (or look up in) its
weight (:mod:`skillweave.base.feeding`). All other changes (of experts, state-space weights, weights that other code
reads) are exchanged in the model itself, during batches of this pack alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
    LowRankEntry,
    MixedEntry,
    RowsEntry,
    Skillpack,
    WholeEntry,
)
from skillweave.pack.decode import coded_matrix, mixed_factors
from skillweave.pack.expected import expected_tensors
from skillweave.pack.vocabulary import token_rows
from skillweave.weave.coded_factors import CodedFactors, LaidOutFactors, Target
from skillweave.weave.int8 import Int8Embedding, Int8Linear
from skillweave.weave.resident import Exchange, Lookup, Resident


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

    def _int8_layer(self, place: Place) -> Int8Linear | Int8Embedding | None:
        """The layer in int8 whose weight this place is, or None."""
        module = self._modules[place[0]]
        return module if isinstance(module, Int8Linear | Int8Embedding) and place[1] == "weight" else None


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
