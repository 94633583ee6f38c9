"""A causal LM woven with packs: every row of a batch uses its own pack, or none, in one forward pass.

The model stays what it was: no module is replaced, no weight is copied, ``state_dict()`` keeps its names. While a
``with woven.rows([...])`` is open, forward hooks add to the output of the layers that the packs in use change; outside
of it the model is the plain base.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import linear

from skillweave.errors import UserError, nearest
from skillweave.pack import FactorsEntry, LowRankEntry, RowsEntry, Skillpack, WholeEntry
from skillweave.pack.vocabulary import TokenRows, token_rows, vocabularies
from skillweave.weave.linear import Hidden, Segment, add_to_rows, into_rank, out_of_rank
from skillweave.weave.stack import Factors, GroupStack

# Stacked, every token meets the factors of all resident packs; pack by pack, only its own, but every operation is
# repeated for each pack in use. Measured on SmolLM2's shapes at rank 36 (one core): a repeat costs 17 ms a step, and a
# token's products with one more pack 0.1 ms. A step of decoding is 3 times cheaper stacked (3 packs, 12 rows: 18 ms
# against 52 above the base), a long prompt up to a fifth dearer (and more with more packs).
_STACKED_UP_TO = 128


@dataclass
class _Resident:
    """One pack made ready for the device, before or after it is laid into the model."""

    name: str
    groups: dict[str, dict[str, Factors]] = field(default_factory=dict)
    """group -> module -> integer factors"""
    unsmooth: dict[str, torch.Tensor] = field(default_factory=dict)
    """group -> 1 / smooth"""
    float_factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """module -> (A, B) of a pack that stores float factors"""
    changed: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """module -> its own parameter -> the tuned tensor, in the base's dtype"""
    tokens: TokenRows | None = None
    """the token rows of a pack that has others than the base"""

    @property
    def nbytes(self) -> int:
        integers = sum(factors.nbytes for group in self.groups.values() for factors in group.values())
        floats = [tensor for pair in self.float_factors.values() for tensor in pair]
        # A tied tensor is named by two modules and held once.
        tuned = {id(tensor): tensor for held in self.changed.values() for tensor in held.values()}
        added = self.tokens.nbytes if self.tokens is not None else 0
        return integers + added + sum(t.nbytes for t in (*self.unsmooth.values(), *floats, *tuned.values()))


class Woven:
    """Packs laid into a model. One batch at a time; beam search, which reorders rows, is not for it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules())
        self._packs: dict[str, _Resident] = {}
        self._stacks: dict[str, GroupStack] = {}
        self._rows: list[str | None] | None = None

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

    def prepare(self, name: str, pack: Skillpack) -> _Resident:
        """Make a pack ready under ``name``; its ``nbytes`` is what :meth:`add` would make resident.

        Raises :class:`UserError` where the pack names a tensor that the model has not, or one that cannot be changed
        row by row.
        """
        ready = _Resident(name)
        owners = _owners(self.model)
        ready.tokens = token_rows(self.model, name, pack.token_rows())
        for tensor, entry in pack.card.entries.items():
            if isinstance(entry, RowsEntry):
                continue
            if tensor not in owners:
                raise UserError(
                    f"the pack '{name}' changes '{tensor}', which the model has not; {nearest(tensor, owners)}"
                )
            parameter, places = owners[tensor]
            if tuple(parameter.shape) != tuple(entry.shape):
                raise UserError(
                    f"the pack '{name}': '{tensor}' is {tuple(entry.shape)} and the base's is "
                    f"{tuple(parameter.shape)}. A tensor that changes its shape (added tokens) cannot differ from row "
                    f"to row: serve this skill alone, from Skillpack.from_pretrained(...).unzip() laid on the base."
                )
            if isinstance(entry, LowRankEntry | FactorsEntry):
                for module, _ in places:
                    _check_linear(name, tensor, module, self._modules[module], parameter)
            if isinstance(entry, LowRankEntry):
                parts = pack.lowrank_parts(tensor)
                for module, _ in places:
                    ready.groups.setdefault(entry.group, {})[module] = Factors.of(parts, parameter.device)
                if parts.smooth is not None:
                    ready.unsmooth[entry.group] = (1 / parts.smooth.float()).to(parameter.device)
            elif isinstance(entry, FactorsEntry):
                pair = (pack.tensors[f"{tensor}.A"].to(parameter), pack.tensors[f"{tensor}.B"].to(parameter))
                ready.float_factors.update({module: pair for module, _ in places})
            else:
                tuned = pack.tensors[tensor].to(parameter.device)
                if not isinstance(entry, WholeEntry):
                    tuned = parameter.detach().float() + tuned.float()
                tuned = tuned.to(parameter.dtype)
                for module, own in places:
                    ready.changed.setdefault(module, {})[own] = tuned
        return ready

    def add(self, ready: _Resident) -> None:
        """Make a prepared pack resident."""
        if ready.name in self._packs:
            raise UserError(f"the pack '{ready.name}' is already loaded")
        if self._rows is not None:
            raise UserError(f"the pack '{ready.name}' cannot be loaded while a batch is running")
        self._packs[ready.name] = ready
        for group, factors in ready.groups.items():
            stack = self._stacks.setdefault(group, GroupStack())
            # The stack copies the factors beside the others' and hands back views of them.
            ready.groups[group] = stack.add(ready.name, factors, ready.unsmooth.get(group))

    def remove(self, name: str) -> None:
        """Free a pack's memory. One that a running batch uses stays, with an error."""
        if name not in self._packs:
            raise UserError(f"the pack '{name}' is not loaded; {nearest(name, self._packs)}")
        if self._rows is not None:
            raise UserError(f"the pack '{name}' cannot be unloaded while a batch is running")
        for group in self._packs.pop(name).groups:
            self._stacks[group].remove(name)
            if not self._stacks[group].packs:
                del self._stacks[group]

    # -- running -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row i of every batch fed to the model uses the pack ``names[i]``, or the plain base for None."""
        names = list(names)
        with self._running(names, len(names)):
            yield

    @contextlib.contextmanager
    def every_row(self, name: str | None) -> Iterator[None]:
        """Inside, all rows of every batch, however many, use the pack ``name``, or the plain base for None."""
        with self._running([name], None):
            yield

    @contextlib.contextmanager
    def _running(self, names: list[str | None], rows: int | None) -> Iterator[None]:
        if self._rows is not None:
            raise UserError("a batch is already running on this model: rows(...) cannot be opened twice")
        for name in names:
            if name is not None and name not in self._packs:
                raise UserError(f"the pack '{name}' is not loaded; {nearest(name, self._packs)}")
        self._rows = names
        handles = []
        tokens = [None if name is None else self._packs[name].tokens for name in names]
        try:
            for module, change in self._changes(names, rows).items():
                handles.append(self._modules[module].register_forward_hook(change, with_kwargs=True))
            with vocabularies(self.model, tokens, every=rows is None):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._rows = None

    def _changes(self, names: list[str | None], rows: int | None) -> dict[str, _Change]:
        """The hook of every module that a pack in use changes. ``rows``: how many a batch has, None: any number."""
        used = [pack for pack in self._packs.values() if pack.name in names]
        changes: dict[str, _Change] = {}

        def at(module: str) -> _Change:
            return changes.setdefault(module, _Change(module, rows))

        for pack in used:
            mine = [index for index, name in enumerate(names) if name == pack.name]
            for module, tuned in pack.changed.items():
                at(module).tuned.append((_index(mine, names, next(iter(tuned.values())).device), tuned))
            for module, (left, right) in pack.float_factors.items():
                at(module).float_factors.append((_index(mine, names, left.device), left, right))
        for group in {group: None for pack in used for group in pack.groups}:
            run = _GroupRun(self._stacks[group], names)
            for module in self._stacks[group].modules:
                at(module).groups.append(run)
        return changes


class _GroupRun:
    """One group during one ``rows`` context: what its modules share for the input they are being fed."""

    def __init__(self, stack: GroupStack, names: list[str | None]) -> None:
        self._stack = stack
        self._names = names
        self._segments: dict[bool, list[Segment]] = {}
        self._input: torch.Tensor | None = None
        self._hidden: list[tuple[Segment, Hidden]] = []
        self._waiting = 0

    def add(self, module: str, x: torch.Tensor, output: torch.Tensor) -> None:
        """Add the packs' share to ``output`` (N, T, out), in place. x: (N, T, in), as the group's modules are fed."""
        if x is not self._input:
            self._input = x
            self._hidden = [(segment, into_rank(_three(x), segment)) for segment in self._segments_for(x)]
            self._waiting = len(self._stack.modules)
        for segment, hidden in self._hidden:
            part = segment.parts.get(module)
            if part is not None:
                add_to_rows(output, segment.rows, out_of_rank(hidden, part))
        self._waiting -= 1
        if self._waiting <= 0:
            self._input, self._hidden = None, []

    def _segments_for(self, x: torch.Tensor) -> list[Segment]:
        tokens = x.numel() // x.shape[-1]
        used, resident = len({*self._names} - {None}), len(self._stack.packs)
        stacked = used > 1 and tokens * resident <= _STACKED_UP_TO * used
        if stacked not in self._segments:
            self._segments[stacked] = self._stack.segments(self._names, stacked=stacked)
        return self._segments[stacked]


class _Change:
    """The forward hook of one module: tuned parameters first, then what factors add."""

    def __init__(self, module: str, rows: int | None) -> None:
        self.name = module
        self.rows = rows
        self.tuned: list[tuple[torch.Tensor | None, dict[str, torch.Tensor]]] = []
        self.float_factors: list[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]] = []
        self.groups: list[_GroupRun] = []
        self._inside = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if self._inside:
            return None
        if kwargs or len(args) != 1 or not isinstance(output, torch.Tensor):
            raise UserError(
                f"the module '{self.name}' takes or gives more than one tensor, so its parameters cannot differ from "
                f"row to row: serve this skill alone, from Skillpack.unzip() laid on the base"
            )
        x = args[0]
        if self.rows is not None and x.shape[0] != self.rows:
            raise UserError(
                f"rows(...) names {self.rows} rows, and '{self.name}' is fed {x.shape[0]}: name a pack (or None) for "
                f"every row of the batch"
            )
        for rows, tuned in self.tuned:
            output = self._with_tuned(module, x, output, rows, tuned)
        if not self.float_factors and not self.groups:
            return output
        wide = _three(output)
        for rows, left, right in self.float_factors:
            mine = _three(x) if rows is None else _three(x).index_select(0, rows)
            # A model whose products are made in float32 feeds wider numbers than it stores.
            add_to_rows(wide, rows, linear(linear(mine, right.to(mine.dtype)), left.to(mine.dtype)))
        for group in self.groups:
            group.add(self.name, x, wide)
        return output

    def _with_tuned(
        self,
        module: nn.Module,
        x: torch.Tensor,
        output: torch.Tensor,
        rows: torch.Tensor | None,
        tuned: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """``output`` with the given rows computed anew from the tuned parameters."""
        self._inside = True
        try:
            mine = functional_call(module, tuned, (x if rows is None else x.index_select(0, rows),))
        finally:
            self._inside = False
        return mine if rows is None else output.index_copy(0, rows, mine)


def _three(x: torch.Tensor) -> torch.Tensor:
    """A view (N, T, last) of a contiguous batch of any number of dimensions from two on."""
    return x if x.dim() == 3 else x.view(x.shape[0], -1, x.shape[-1])


def _index(mine: list[int], names: list[str | None], device: torch.device) -> torch.Tensor | None:
    return None if len(mine) == len(names) else torch.tensor(mine, device=device)


def _owners(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[tuple[str, str]]]]:
    """Every parameter by each of its names, with all (module, own name) that hold it: tied ones have several."""
    places: dict[int, list[tuple[str, str]]] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in named:
        module, _, own = name.rpartition(".")
        places.setdefault(id(parameter), []).append((module, own))
    return {name: (parameter, places[id(parameter)]) for name, parameter in named}


def _check_linear(pack: str, tensor: str, name: str, module: nn.Module, parameter: nn.Parameter) -> None:
    if not isinstance(module, nn.Linear) or module.weight is not parameter:
        raise UserError(
            f"the pack '{pack}' stores '{tensor}' as low-rank factors, and '{name}' holds it in a "
            f"{type(module).__name__}, not a linear layer. Zip the delta again with this tensor kept or dropped, or "
            f"serve the skill alone, from Skillpack.unzip() laid on the base."
        )
