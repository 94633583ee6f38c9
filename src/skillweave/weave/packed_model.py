"""A causal LM woven with packs: every row of a batch uses its own pack, or none, in one forward pass.

The model stays what it was: no module is replaced, no weight is copied, ``state_dict()`` keeps its names. While a
``with woven.rows([...])`` is open, forward hooks add to the output of the layers that the packs in use change; outside
of it the model is the plain base.

A pack with a change that no hook can make row by row (experts, state-space weights) answers in batches of its own:
while one is open, these tensors of the model hold the tuned values. Afterwards they hold the base's again, to the bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from skillweave.base.feeding import Fed, feeding
from skillweave.errors import UserError, nearest
from skillweave.pack import Skillpack
from skillweave.pack.vocabulary import vocabularies
from skillweave.weave.change import Batch, Change, GroupRun
from skillweave.weave.resident import Places, Resident
from skillweave.weave.stack import GroupStack


class PackedModel:
    """Packs laid into a model. One batch at a time; beam search, which reorders rows, is not for it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules())
        self._packs: dict[str, Resident] = {}
        self._stacks: dict[str, GroupStack] = {}
        self._running_now = False

    @functools.cached_property
    def _fed(self) -> dict[str, Fed]:
        return feeding(self.model)

    @functools.cached_property
    def _places(self) -> Places:
        return Places(self.model, self._fed)

    # -- residency -----------------------------------------------------------------------------------------------

    @property
    def packs(self) -> list[str]:
        """The names of the resident packs."""
        return list(self._packs)

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's parameters and buffers."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    @property
    def resident_bytes(self) -> int:
        """Bytes that the resident packs take beside the base."""
        return sum(pack.nbytes for pack in self._packs.values())

    def why_alone(self, name: str) -> str | None:
        """Why a resident pack answers in batches of its own, or None where it can share one with others."""
        pack = self._packs[name]
        return pack.why if pack.alone else None

    def prepare(self, name: str, pack: Skillpack) -> Resident:
        """Make a pack ready under ``name``; its ``nbytes`` is what :meth:`add` would make resident.

        Raises :class:`UserError` where the pack names a tensor that the model does not have, or has in another shape.
        """
        return self._places.prepare(name, pack)

    def add(self, ready: Resident) -> None:
        """Make a prepared pack resident. One whose groups are not the other packs' is a :class:`UserError`."""
        if ready.name in self._packs:
            raise UserError(f"the pack '{ready.name}' is already loaded")
        if self._running_now:
            raise UserError(f"the pack '{ready.name}' cannot be loaded while a batch is running")
        for group, factors in ready.groups.items():
            if group in self._stacks:
                self._stacks[group].check_fits(ready.name, group, factors)
        self._packs[ready.name] = ready
        for group, factors in ready.groups.items():
            stack = self._stacks.setdefault(group, GroupStack())
            # The stack copies the factors beside the others' and hands back views of them.
            ready.groups[group] = stack.add(ready.name, factors, ready.unsmooth.get(group))

    def remove(self, name: str) -> None:
        """Free a pack's memory. One that a running batch uses stays, with an error."""
        if name not in self._packs:
            raise UserError(f"the pack '{name}' is not loaded; {nearest(name, self._packs)}")
        if self._running_now:
            raise UserError(f"the pack '{name}' cannot be unloaded while a batch is running")
        for group in self._packs.pop(name).groups:
            self._stacks[group].remove(name)
            if not self._stacks[group].packs:
                del self._stacks[group]

    # -- running -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row i of every batch fed to the model uses the pack ``names[i]``, or the plain base for None.

        Raises :class:`UserError` where one of several packs can answer in a batch of its own only
        (:meth:`why_alone`).
        """
        names = list(names)
        with self._running(Batch(names, len(names))):
            yield

    @contextlib.contextmanager
    def every_row(self, name: str | None) -> Iterator[None]:
        """Inside, all rows of every batch, however many, use the pack ``name``, or the plain base for None."""
        with self._running(Batch([name], None)):
            yield

    @contextlib.contextmanager
    def _running(self, batch: Batch) -> Iterator[None]:
        if self._running_now:
            raise UserError("a batch is already running on this model: rows(...) cannot be opened twice")
        for name in batch.names:
            if name is None:
                continue
            if name not in self._packs:
                raise UserError(f"the pack '{name}' is not loaded; {nearest(name, self._packs)}")
            if not batch.uniform and self._packs[name].alone:
                raise UserError(
                    f"the pack '{name}' must have a batch of its own, for {self._packs[name].why}: open one "
                    f"rows(...) for it and another for the rest (Weave.generate does so by itself)"
                )
        self._running_now = True
        handles = []
        try:
            with self._exchanged(batch):
                changes = self._changes(batch)
                for module, change in changes.items():
                    handles.append(self._modules[module].register_forward_hook(change, with_kwargs=True))
                # Only what is changed is asked about: for the plain base the model is not probed at all.
                if any(change.fed.rows == "flat" for change in changes.values()):
                    handles.append(self.model.register_forward_pre_hook(batch.see, with_kwargs=True))
                tokens = [None if name is None else self._packs[name].tokens for name in batch.names]
                with vocabularies(self.model, tokens, every=batch.rows is None):
                    yield
        finally:
            for handle in handles:
                handle.remove()
            self._running_now = False

    @contextlib.contextmanager
    def _exchanged(self, batch: Batch) -> Iterator[None]:
        """Inside, the model holds the tuned values of the batch's one pack, where there is one, in place of its own.

        That is all that cannot differ from row to row, and what needs no hook where all rows are alike.
        """
        pack = self._packs[batch.names[0]] if batch.names and batch.uniform and batch.names[0] is not None else None
        if pack is None:
            yield
            return
        held: list[tuple[torch.Tensor, torch.Tensor]] = []

        def put(module: str, own: str, tuned: torch.Tensor) -> None:
            tensor = getattr(self._modules[module], own)
            if not any(tensor is other for other, _ in held):  # a tied tensor is in two places
                held.append((tensor, tensor.data))
                tensor.data = tuned

        try:
            for module, tensors in pack.changed.items():
                for own, tuned in tensors.items():
                    put(module, own, tuned)
            for exchange in pack.exchanged:
                for name, tuned in exchange.make().items():
                    module, _, own = name.rpartition(".")
                    put(module, own, tuned)
            yield
        finally:
            for tensor, data in held:
                tensor.data = data

    def _changes(self, batch: Batch) -> dict[str, Change]:
        """The hook of every module that a pack in use changes."""
        names = batch.names
        used = [pack for pack in self._packs.values() if pack.name in names]
        changes: dict[str, Change] = {}

        def at(module: str) -> Change:
            return changes.setdefault(module, Change(module, self._fed[module], batch))

        for pack in used:
            mine = [index for index, name in enumerate(names) if name == pack.name]
            if not batch.uniform:
                for module, tuned in pack.changed.items():
                    at(module).tuned.append((_index(mine, names, next(iter(tuned.values())).device), tuned))
            for module, (left, right) in pack.float_factors.items():
                at(module).float_factors.append((_index(mine, names, left.device), left, right))
            for module, lookup in pack.lookups.items():
                at(module).lookups.append((_index(mine, names, lookup.left.device), lookup))
        for group in {group: None for pack in used for group in pack.groups}:
            run = GroupRun(self._stacks[group], names)
            for module in self._stacks[group].modules:
                at(module).groups.append(run)
        return changes


def _index(mine: list[int], names: list[str | None], device: torch.device) -> torch.Tensor | None:
    return None if len(mine) == len(names) else torch.tensor(mine, device=device)
