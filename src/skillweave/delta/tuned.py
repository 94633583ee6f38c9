"""Base + delta, computed in one place: written to files, hashed, or loaded into a model, tensor by tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from skillweave.base.checkpoint import Checkpoint
from skillweave.base.fingerprint import fingerprint
from skillweave.base.open import Base
from skillweave.delta.arithmetic import applied
from skillweave.delta.carry import Carried
from skillweave.delta.compare import check_rows_agree
from skillweave.delta.source import TensorSource
from skillweave.delta.voice import carried_generation, carried_tokenizer
from skillweave.errors import UserError


class TunedCheckpoint(Checkpoint):
    """A lazy view of the tuned model's tensors: those of ``base``, with the changes of ``delta`` added.

    Names, ties, config and skeleton are the base's. ``dtype`` is that of all floating-point tensors (None: each has
    the base's). A sum is computed in float32 and rounded once. Memory is that of one tensor.

    Raises :class:`UserError`, by name, for a changed tensor that ``base`` does not have in a shape that fits.
    """

    def __init__(self, base: Checkpoint, delta: TensorSource, dtype: torch.dtype | None = None) -> None:
        _check_fits(delta, base)
        vars(self).update(vars(base))  # what is not overridden below is the base's
        self.files = None  # the files hold the base, so neither they nor their fingerprint stand for this checkpoint
        self.where = f"{base.where} with the delta"
        self._base = base
        self._delta = delta
        self._dtype = dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        name = self.tied.get(name, name)
        return self._delta.specs[name][0] if name in self._delta.specs else self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor as :meth:`tensor` gives it, without reading it."""
        stored = self._base.dtype(name)
        return self._dtype if self._dtype is not None and stored.is_floating_point else stored

    def tensor(self, name: str) -> torch.Tensor:
        """One tuned tensor, on the device of the base's. It is computed from the base's tensor in :meth:`dtype`."""
        name = self.tied.get(name, name)
        old = self._base.tensor(name).to(self.dtype(name))
        if name not in self._delta.specs:
            return old
        change, shared = self._delta[name], self._delta.rows.get(name)
        if name in self._delta.whole:
            return change.to(old)
        if shared is None:
            return applied(old, change)
        return torch.cat([applied(old[:shared], change[:shared]), change[shared:].to(old)])

    @property
    def token_rows(self) -> int | None:
        """The number of rows of the input embedding, where the delta changes it; else None."""
        for name in self.vocabulary_names().intersection(self._delta.specs):
            if self.shape(name)[0] != self._base.shape(name)[0]:
                return self.shape(name)[0]
        return None

    @torch.no_grad()
    def load_into(self, model: Any, advance: Callable[[], None] = lambda: None) -> None:
        """Overwrite the changed tensors of ``model``, which holds the base's values in any dtype, with the tuned ones.

        The embedding is resized where the number of tokens changes. ``advance`` is called after each tensor. If
        ``model`` is the base of this checkpoint, then this checkpoint must not be used afterwards.
        """
        if (rows := self.token_rows) is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        state: dict[str, Any] = model.state_dict()
        for name in sorted(self._delta.specs):
            state[name].copy_(self.tensor(name))
            advance()


def tuned_base(
    base: Base,
    tuned: TunedCheckpoint,
    carried: Carried,
    *,
    in_place: bool = False,
    known_fingerprint: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Base:
    """An open base with the values of ``tuned``, and with the tokenizer and generation config among ``carried``.

    Its model is a copy of the model of ``base``, or that very model if ``in_place``. Its fingerprint is
    ``known_fingerprint``, or (None) that of the model in memory. ``advance`` is called after each changed tensor.
    """
    tokenizer, generation = carried_tokenizer(carried, base), carried_generation(carried)
    model = base.model if in_place else copy.deepcopy(base.model)
    tuned.load_into(model, advance)
    if generation is not None:
        model.generation_config = generation
    return Base(model, tokenizer, known_fingerprint or fingerprint(model), base.ref, base.path, in_memory=True)


def _check_fits(delta: TensorSource, base: Checkpoint) -> None:
    vocabulary = base.vocabulary_names()
    rows = {name: base.shape(name)[0] for name in base.names() if name in vocabulary}
    for name, (shape, _) in delta.specs.items():
        if name not in base:
            raise UserError(
                f"{delta.owner} changes '{name}', which {base.where} does not have under that name. If transformers "
                f"fuses such tensors while loading, write the tuned model as files (skillweave unzip) and open it."
            )
        expected = base.shape(name)
        shared = delta.rows.get(name)
        may_resize = name in vocabulary and (name in delta.whole or shared is not None)
        fits = shape == expected or (may_resize and shape[1:] == expected[1:])
        if not fits or shared not in (None, min(shape[0], expected[0])):
            raise UserError(f"{delta.owner} changes '{name}' in the shape {shape}; {base.where} has {expected}")
        if may_resize:
            rows[name] = shape[0]
    check_rows_agree(rows, f"{base.where} with the delta")
