"""A base that answers as a pack does, whose factors can be trained: their products are added in forward hooks.

No weight is copied, and no weight of the base gets a gradient. The difference from :mod:`skillweave.weave` is the
arithmetic of the pack: its products are floats, through which a gradient flows. The layers of the base compute as they
are, also in int8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from skillweave.base.feeding import Fed, feeding
from skillweave.base.layout import Layout, owners
from skillweave.base.prefix import backbone_tokens
from skillweave.errors import UserError
from skillweave.pack import DifferenceEntry, GroupedEntry, LowRankEntry, RowsEntry, Skillpack, WholeEntry
from skillweave.pack.decode import coded_matrix
from skillweave.pack.vocabulary import token_rows, vocabularies
from skillweave.skillzip.refine.factors import FactorEntry, float_factors, has_factors, steps
from skillweave.skillzip.refine.forward import Row, answer_logits
from skillweave.weave.int8 import Int8Embedding, Int8Linear

_Product = Callable[[torch.Tensor], torch.Tensor]
"""The input of a module -> what is added to its output."""


@dataclass(frozen=True)
class _Place:
    """A module that holds the tensor of an entry, and how it uses it."""

    module: nn.Module
    fed: Fed


class Student:
    """A model with a pack on it.

    Entries whose products can be added to the output of a module are trainable. The tensors of all other entries hold
    the values that the pack gives them while :meth:`running` lasts.

    With ``opening`` (:func:`~skillweave.base.prefix.opening_ids`), the plain base reads the prompts, all but the
    opening of the answer, and the pack reads the rest. None: the pack reads all.
    """

    def __init__(self, model: Any, pack: Skillpack, opening: Sequence[int] | None = None) -> None:
        self.model = model
        self._pack = pack
        self._opening = opening
        self._plain_now = False
        self._originals: list[tuple[torch.Tensor, torch.Tensor]] = []
        """while the student runs: tensors of the model that hold values of the pack, and the base's values"""
        self._layout = Layout(model)
        self._places: dict[str, list[_Place]] = {}
        self._fixed: dict[str, str] = {}
        """entry -> the name of its tensor in the model"""
        self._joined: dict[str, None] = {}
        """tensors of the model that are joined from several of the files"""
        self._tokens = token_rows(model, pack.card.name, pack.token_rows())
        self._smooth = {
            name: pack.tensors[f"{entry.group}.smooth"].to(self._device).float()
            for name, entry in pack.card.entries.items()
            if isinstance(entry, LowRankEntry) and entry.smooth
        }
        self._place(feeding(model))

    @property
    def trainable(self) -> dict[str, FactorEntry]:
        """The entries whose factors can be trained, by name."""
        entries = self._pack.card.entries
        return {name: entry for name, entry in entries.items() if name in self._places and has_factors(entry)}

    @property
    def fixed(self) -> list[str]:
        """The names of the entries that hold matrices in a short form and cannot be trained here."""
        plain = DifferenceEntry | WholeEntry | RowsEntry
        entries = self._pack.card.entries
        return [name for name, entry in entries.items() if not isinstance(entry, plain) and name not in self._places]

    def float_factors(self) -> dict[str, torch.Tensor]:
        """Return the factors of the trainable entries as the pack has them, float32 on the model's device."""
        return {
            key: factor.to(self._device)
            for name in self.trainable
            for key, factor in float_factors(self._pack, name).items()
        }

    def steps(self, coarser: float) -> dict[str, torch.Tensor]:
        """Return the steps of the coded factors, on the model's device; see :func:`factors.steps`."""
        return {key: step.to(self._device) for key, step in steps(self._pack, coarser).items()}

    @contextlib.contextmanager
    def running(self, factors: dict[str, torch.Tensor]) -> Iterator[None]:
        """Context in which the model answers with the pack, and with ``factors`` in place of the pack's own.

        The values of the mapping may be replaced inside the context. The model is in eval mode, and none of its weights
        gets a gradient. Afterwards it is as it was before, to the bit; a gradient must be computed before, because some
        tensors of the model hold the pack's values.
        """
        parameters = list(self.model.parameters())
        wanted = [parameter.requires_grad for parameter in parameters]
        was_training = self.model.training
        handles: list[Any] = []
        try:
            self.model.eval().requires_grad_(False)
            self._put_fixed()
            for name, places in self._places.items():
                for place in places:
                    handles.append(place.module.register_forward_hook(self._adds(name, place.fed, factors)))
            # After the hooks above, which know the base's rows only.
            with vocabularies(self.model, [self._tokens], every=True):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for tensor, data in self._originals:
                tensor.data = data
            self._originals.clear()
            for parameter, value in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(value)
            self.model.train(was_training)

    def answer_logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return the logits (n, V) of all answer tokens, as :func:`~skillweave.skillzip.refine.forward.answer_logits`.

        The student must be :meth:`running`.
        """
        if self._opening is None:
            return answer_logits(self.model, rows)
        prefixes = [backbone_tokens(ids[:prompt], self._opening) for ids, prompt in rows]
        return answer_logits(self.model, rows, prefixes, self._plain)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        """Context inside :meth:`running` in which the model is the base alone."""
        tuned = [(tensor, tensor.data) for tensor, _ in self._originals]
        self._plain_now = True
        try:
            for tensor, data in self._originals:
                tensor.data = data
            yield
        finally:
            for tensor, data in tuned:
                tensor.data = data
            self._plain_now = False

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _place(self, fed: Mapping[str, Fed]) -> None:
        """Find out which modules each entry changes, and whether its factors can be added to their outputs."""
        modules = dict(self.model.named_modules())
        tensors = owners(self.model)
        for name, entry in self._pack.card.entries.items():
            if isinstance(entry, RowsEntry):
                continue
            target, joined = self._layout.place(name)
            if joined and self._layout.parts(target):
                self._joined[target] = None
                continue
            if target not in tensors:
                raise UserError(
                    f"the pack '{self._pack.card.name}' holds '{name}', which the base does not have: such a pack can "
                    "be unzipped, but neither served nor refined; remove refine"
                )
            holders = [module for module, _ in tensors[target][1]]
            if has_factors(entry) and all(module in fed and _fits(entry, fed[module]) for module in holders):
                self._places[name] = [_Place(modules[module], fed[module]) for module in holders]
            else:
                self._fixed[name] = target

    def _adds(self, name: str, fed: Fed, factors: Mapping[str, torch.Tensor]) -> Any:
        """Return the forward hook that adds the product of an entry's factors."""
        entry = self._pack.card.entries[name]
        if isinstance(entry, GroupedEntry):
            product = self._signs(name, entry, fed, factors)
        else:
            product = self._low_rank(name, fed, factors)

        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output if self._plain_now else output + product(args[0]).to(output.dtype)

        return hook

    def _low_rank(self, name: str, fed: Fed, factors: Mapping[str, torch.Tensor]) -> _Product:
        """Return the product of an input with two factors."""
        smooth = self._smooth.get(name)

        def product(x: torch.Tensor) -> torch.Tensor:
            left, right = factors[f"{name}.A"], factors[f"{name}.B"]
            right = right if smooth is None else right / smooth
            if fed.law == "lookup":
                return embedding(x, left) @ right * fed.scale
            return linear(linear(x, right.to(x.dtype)), left.to(x.dtype))

        return product

    def _signs(self, name: str, entry: GroupedEntry, fed: Fed, factors: Mapping[str, torch.Tensor]) -> _Product:
        """Return the product of an input with a matrix of signs, which is written out when it is used."""
        stored = {f"{name}.codes": self._pack.tensors[f"{name}.codes"], f"{name}.scale": torch.ones(1)}

        def product(x: torch.Tensor) -> torch.Tensor:
            scale = factors[f"{name}.scale"]
            signs = coded_matrix(stored, name, entry).to(self._device)
            if fed.law == "lookup":
                return embedding(x, signs) * (scale * fed.scale)
            return linear(x, signs.to(x.dtype)) * scale

        return product

    @torch.no_grad()
    def _put_fixed(self) -> None:
        """Put the values of all entries that are not trained into the model, and note what they replace."""
        tensors = owners(self.model)

        def put(target: str, value: torch.Tensor, *, added: bool) -> None:
            tensor, ((module, own), *_) = tensors[target]
            layer = self.model.get_submodule(module)
            value = value.to(tensor.device)
            if isinstance(layer, Int8Linear | Int8Embedding) and own == "weight":
                values = layer.coded(layer.decoded() + value if added else value)
            else:
                values = {own: tensor.float() + value if added else value}
            for part, data in values.items():
                held = getattr(layer, part)
                self._originals.append((held, held.data))
                held.data = data.to(held)

        pack = self._pack
        for name, target in self._fixed.items():
            whole = isinstance(pack.card.entries[name], WholeEntry)
            put(target, pack.tensors[name] if whole else pack.decode(name), added=not whole)
        for group in self._joined:
            changes = self._layout.joined(group, lambda part: pack.decode(part) if part in pack.card.entries else None)
            for target, change in changes.items():
                put(target, change, added=True)


def _fits(entry: FactorEntry, fed: Fed) -> bool:
    """Return whether a module does nothing with its weight but what the factors of the entry can be added to."""
    return fed.law in ({"transposed"} if entry.transposed else {"linear", "lookup"})
