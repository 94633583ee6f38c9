"""A causal LM with packs: every row of a batch uses its own pack, or none, in one forward pass.

The model itself does not change: no module is replaced, no weight is copied, ``state_dict()`` keeps its names. Inside
``with packed_model.rows([...])``, the forward of each layer that the packs in use change adds to its output. Outside of
it the model is the plain base.

The integer factors of a pack stay as compressed as they are in its file until a batch uses them. They are then
unpacked, and stay so as long as the pack is one of the last that were used. Steps of continuous batching are short, so
the codes that the compiled functions read, a byte each, also stay from one step to the next.

Some changes cannot differ from row to row (experts, state-space weights). A pack with such a change answers in batches
of its own: during them these tensors of the model hold the tuned values, and afterwards again the base's, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from skillweave.base.feeding import Fed, feeding
from skillweave.base.sizes import embedding_rows
from skillweave.errors import UserError, nearest
from skillweave.pack import Skillpack
from skillweave.pack.vocabulary import vocabularies
from skillweave.weave.change import Batch, Change, GroupRun
from skillweave.weave.coded_factors import Groups
from skillweave.weave.places import Places
from skillweave.weave.resident import Resident
from skillweave.weave.stack import GroupStack, RowPacks
from skillweave.weave.widened import Widened, WidenedPacks

UNPACKED_PACKS: int | None = 2
"""How many of the packs that were used last stay unpacked between batches."""


class PackedModel:
    """A model and the packs that are loaded into it. It runs one batch at a time.

    Beam search does not work with it, because it reorders rows. ``unpacked_packs``: how many of the packs that were
    used last stay unpacked between batches; a batch unpacks all packs that it uses, also if there are more. None: all
    packs stay unpacked as long as they are resident, and they are unpacked when they are prepared, not in a batch.
    """

    def __init__(self, model: nn.Module, unpacked_packs: int | None = UNPACKED_PACKS) -> None:
        if unpacked_packs is not None and unpacked_packs < 0:
            raise UserError(f"unpacked_packs is {unpacked_packs}: give the number of packs, 0 or more")
        self.model: Any = model
        self.unpacked_packs = unpacked_packs
        self._modules = dict(model.named_modules())
        self._packs: dict[str, Resident] = {}
        self._unpacked: dict[str, Groups] = {}
        """pack -> its factors; the one that was used last stands last"""
        self._widened = WidenedPacks()
        self._last_step: tuple[object, dict[str, Change]] | None = None
        """the packs of the last step of :meth:`tokens`, and its changes"""
        self._running_now = False
        self._values = threading.RLock()
        """held while tensors of the model hold tuned values"""

    @functools.cached_property
    def _fed(self) -> dict[str, Fed]:
        return feeding(self.model)

    def watch(self) -> None:
        """Find out how the model feeds its modules, unless that is known: it is needed to prepare the first pack.

        The model runs for it, so call it before other threads prepare packs or run batches.
        """
        _ = self._places

    @functools.cached_property
    def _head(self) -> frozenset[str]:
        """The modules behind the backbone. Some models have a dense layer and a norm before the output embedding."""
        backbone = set(self.model.base_model.modules()) - {self.model.get_output_embeddings()}
        return frozenset(name for name, module in self._modules.items() if module not in backbone)

    @functools.cached_property
    def _places(self) -> Places:
        return Places(self.model, self._fed, self._values)

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
        """Bytes of the resident packs now, in addition to the base."""
        return sum(map(self.held_bytes, self._packs))

    def held_bytes(self, name: str) -> int:
        """Bytes of a pack now; 0 if it is not resident. It may be called in any thread while batches run."""
        pack = self._packs.get(name)
        if pack is None:
            return 0
        unpacked = pack.unpacked_nbytes if name in self._unpacked else 0
        return pack.nbytes + unpacked + (pack.widened_nbytes if name in self._widened else 0)

    @property
    def unpacked(self) -> list[str]:
        """The names of the packs that are unpacked now; the one that was used last stands last."""
        return list(self._unpacked)

    def needed_bytes(self, *more: Resident) -> int:
        """Bytes of the resident packs, and of ``more``, while ``unpacked_packs`` of them, the largest, are unpacked.

        With ``unpacked_packs`` None, all of them are. A batch of more packs than that takes more while it runs, and
        steps of :meth:`tokens` take up to the :meth:`pack_bytes` of each of their packs.
        """
        packs = [*self._packs.values(), *more]
        largest = sorted((pack.unpacked_nbytes for pack in packs), reverse=True)[: self.unpacked_packs]
        return sum(largest) + sum(pack.nbytes for pack in packs)

    def pack_bytes(self, name: str) -> int:
        """The most bytes that a resident pack takes: while it is unpacked, and steps of :meth:`tokens` use it."""
        return self._packs[name].most_nbytes

    @property
    def tokens_of_base(self) -> int:
        """The number of tokens that the base has."""
        return embedding_rows(self.model)

    def shared_tokens(self, name: str) -> int:
        """The number of tokens that both the base and a resident pack have."""
        rows, tokens = self.tokens_of_base, self._packs[name].tokens
        return rows if tokens is None else min(rows, tokens.rows)

    def why_alone(self, name: str) -> str | None:
        """The reason why a resident pack needs batches of its own, or None if it can share a batch with other packs."""
        pack = self._packs[name]
        return pack.why if pack.alone else None

    def prepare(self, name: str, pack: Skillpack) -> Resident:
        """Prepare a pack for this model under ``name``; its ``nbytes`` are the bytes that :meth:`add` makes resident.

        It may be called in any thread while batches run, after :meth:`watch`. Raises :class:`UserError` if the pack
        changes a tensor that the model does not have, or has in another shape.
        """
        return self._places.prepare(name, pack, laid_out=self.unpacked_packs is None)

    def add(self, ready: Resident) -> None:
        """Make a prepared pack resident.

        Raises :class:`UserError` if its groups do not fit those of the other packs.
        """
        if ready.name in self._packs:
            raise UserError(f"the pack '{ready.name}' is already loaded")
        if self._running_now:
            raise UserError(f"the pack '{ready.name}' cannot be loaded while a batch is running")
        self._check_widths(ready)
        self._packs[ready.name] = ready

    def _check_widths(self, ready: Resident) -> None:
        """Raise :class:`UserError` if matrices of a pack have another input width than their group in other packs."""
        known = {group: (width, name) for name, pack in self._packs.items() for group, width in pack.widths.items()}
        for group, width in ready.widths.items():
            theirs, other = known.get(group, (width, ""))
            if theirs != width:
                raise UserError(
                    f"the pack '{ready.name}' has matrices of {width} inputs in the group '{group}', and the pack "
                    f"'{other}' has matrices of {theirs} inputs in it: one of the two was not made for "
                    f"this model. Zip it again, or load one of the two."
                )

    def remove(self, name: str) -> None:
        """Free a pack's memory. Raises :class:`UserError` if it is not loaded, or while a batch is running."""
        if name not in self._packs:
            raise UserError(f"the pack '{name}' is not loaded; {nearest(name, self._packs)}")
        if self._running_now:
            raise UserError(f"the pack '{name}' cannot be unloaded while a batch is running")
        del self._packs[name]
        self._drop_unpacked(name)
        self._widened.forget(name)

    # -- running -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Context in which row i of every batch uses the pack ``names[i]``, or the plain base for None.

        Raises :class:`UserError` if there are several packs and one of them needs a batch of its own
        (:meth:`why_alone`).
        """
        names = list(names)
        with self._running(Batch(names, len(names))):
            yield

    @contextlib.contextmanager
    def every_row(self, name: str | None) -> Iterator[None]:
        """Context in which all rows of every batch, of any size, use the pack ``name``, or the plain base for None."""
        with self._running(Batch([name], None)):
            yield

    @contextlib.contextmanager
    def tokens(self, names: Sequence[str | None], last: Sequence[str | None]) -> Iterator[None]:
        """Context for one forward pass of one row, in which token i uses the pack ``names[i]``, or none.

        Tokens of several sequences lie in that row, as in continuous batching. ``last``: the packs of the tokens whose
        hidden states reach the head. A step with the packs of the step before costs less than a new :meth:`rows`.

        Raises :class:`UserError` if there are several packs and one of them needs steps of its own
        (:meth:`why_own_steps`).
        """
        if len(set(names)) == 1:
            batch = Batch(names[:1], None, tokens=True)
        else:
            batch = Batch(names, len(names), tokens=True, last=last)
            if self._last_step is None or self._last_step[0] != batch.key:
                for name in batch.names.distinct:
                    if name is not None and name in self._packs and (why := self.why_own_steps(name)) is not None:
                        raise UserError(f"the pack '{name}' must have steps of its own: {why}")
        with self._running(batch):
            yield

    def why_own_steps(self, name: str) -> str | None:
        """The reason why no step of :meth:`tokens` can use a resident pack and another one, or None."""
        if self._packs[name].tokens is not None:
            return "it has tokens of its own, which the head gives for all tokens of a step or for none"
        for module in self._packs[name].modules:
            if self._fed[module].rows == "rows" and self._fed[module].tokens != 1:
                return f"the second axis of what '{module}' is fed is not the tokens"
        return self.why_alone(name)

    @contextlib.contextmanager
    def _running(self, batch: Batch) -> Iterator[None]:
        if self._running_now:
            raise UserError("a batch is already running on this model: rows(...) cannot be opened twice")
        for name in batch.names.distinct:
            if name is None:
                continue
            if name not in self._packs:
                raise UserError(f"the pack '{name}' is not loaded; {nearest(name, self._packs)}")
            if not batch.uniform and self._packs[name].alone:
                raise UserError(
                    f"the pack '{name}' must have a batch of its own, for {self._packs[name].why}: open one "
                    f"rows(...) for it and another for the rest (Weave.generate does this by itself)"
                )
        self._running_now = True
        handles: list[RemovableHandle] = []
        put_on: list[Change] = []
        try:
            self._unpack(batch)
            with self._tuned_values(batch):
                changes = self._changes_of_step(batch) if batch.tokens else self._changes(batch)
                for change in changes.values():
                    change.put_on()
                    put_on.append(change)
                # Only changed modules are looked at: for the plain base the model is not probed at all.
                if any(change.fed.rows == "flat" for change in changes.values()):
                    handles.append(self.model.register_forward_pre_hook(batch.see, with_kwargs=True))
                of_row = batch.names.distinct[:1] if batch.rows is None else batch.names
                tokens = [None if name is None else self._packs[name].tokens for name in of_row]
                with vocabularies(self.model, tokens, every=batch.rows is None):
                    yield
        except BaseException:
            self._last_step = None  # its changes may hold what they were in the middle of
            raise
        finally:
            for change in put_on:
                change.take_off()
            for handle in handles:
                handle.remove()
            self._widened.end_batch()
            if self.unpacked_packs is not None:
                self._keep_unpacked(self.unpacked_packs)
            self._running_now = False

    def _unpack(self, batch: Batch) -> None:
        """Unpack the packs of a batch. First, others give back what they take beyond ``unpacked_packs``."""
        used = [name for name in batch.names.distinct if name is not None]
        again = {name: self._unpacked.pop(name) for name in used if name in self._unpacked}
        if self.unpacked_packs is not None:
            self._keep_unpacked(max(0, self.unpacked_packs - len(used)))
        self._unpacked |= again
        for name in used:
            if name not in self._unpacked:
                self._unpacked[name] = self._packs[name].unpacked()

    def _keep_unpacked(self, count: int) -> None:
        """Drop the unpacked factors of all packs but so many that were used last."""
        for name in list(self._unpacked)[: max(0, len(self._unpacked) - count)]:
            self._drop_unpacked(name)

    def _changes_of_step(self, batch: Batch) -> dict[str, Change]:
        """The changes of a step. Most steps of decoding have the packs of the step before; its changes serve again."""
        self._widened.begin_step([name for name in batch.names.distinct if name is not None])
        if self._last_step is None or self._last_step[0] != batch.key:
            self._last_step = batch.key, self._changes(batch)
        return self._last_step[1]

    def _widened_group(self, group: str, name: str) -> Widened:
        return self._widened.of(name, self._unpacked[name], self._packs[name].unsmooth)[group]

    def _drop_unpacked(self, name: str) -> None:
        self._last_step = None
        self._unpacked.pop(name, None)
        self._widened.drop(name)

    @contextlib.contextmanager
    def _tuned_values(self, batch: Batch) -> Iterator[None]:
        """Context in which the model holds tuned values of the pack, if all rows of the batch use the same one.

        These are the tensors that cannot differ from row to row, and those that need no hook if all rows are the same.
        """
        name = batch.names.distinct[0] if batch.uniform else None
        pack = None if name is None else self._packs[name]
        if pack is None or not (pack.changed or pack.exchanged):
            yield
            return
        originals: list[tuple[torch.Tensor, torch.Tensor]] = []

        def put(module: str, own: str, tuned: torch.Tensor) -> None:
            tensor = getattr(self._modules[module], own)
            if not any(tensor is other for other, _ in originals):  # a tied tensor is in two places
                originals.append((tensor, tensor.data))
                tensor.data = tuned

        with self._values:
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
                for tensor, data in originals:
                    tensor.data = data

    def _changes(self, batch: Batch) -> dict[str, Change]:
        """The change of each module that a pack in use changes, by the module's name."""
        used = [pack for pack in self._packs.values() if pack.name in batch.names]
        changes: dict[str, Change] = {}

        def named(modules: Sequence[str]) -> RowPacks:
            """The packs of what these modules are fed: of all rows, or of the hidden states that reach the head."""
            return batch.last if len(batch.last) and not self._head.isdisjoint(modules) else batch.names

        def at(module: str) -> Change:
            if module not in changes:
                changes[module] = Change(module, self._modules[module], self._fed[module], batch, named([module]))
            return changes[module]

        for pack in used:
            if not batch.uniform:
                for module, tuned in pack.changed.items():
                    index = _index(named([module]), pack.name, next(iter(tuned.values())).device)
                    at(module).tuned.append((index, tuned))
            for module, factors in pack.float_factors.items():
                at(module).float_factors.append((_index(named([module]), pack.name, factors[0].device), factors))
            for module, lookup in pack.lookups.items():
                at(module).lookups.append((_index(named([module]), pack.name, lookup.left.device), lookup))
        stacks: dict[str, GroupStack] = {}
        for pack in used:
            for group, own in self._unpacked[pack.name].items():
                stacks.setdefault(group, GroupStack()).add(pack.name, own, pack.unsmooth.get(group))
        for group, stack in stacks.items():
            run = GroupRun(stack, named(stack.modules), functools.partial(self._widened_group, group))
            for module in run.modules:
                at(module).groups.append(run)
        return changes


def _index(names: RowPacks, pack: str, device: torch.device) -> torch.Tensor | None:
    """The rows of a pack as int64 (n,), or None if they are all rows of the batch."""
    index = names.index(pack)
    return None if index is None else index.to(device)
