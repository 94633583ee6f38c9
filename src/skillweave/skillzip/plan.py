"""Which changed tensors are written as matrices in two factors, and how each is seen as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from skillweave.base import Checkpoint
from skillweave.base.feeding import feeding
from skillweave.base.layout import Layout
from skillweave.delta import Delta
from skillweave.skillzip.calibrate import input_groups, linear_modules

_NARROW = 16
"""A matrix that is no linear layer's and has a side of at most this is not worth two factors: it is kept or dropped."""


@dataclass(frozen=True)
class Piece:
    """A changed matrix (out, in): a tensor, turned or flattened where it must be, or one matrix of a stack."""

    tensor: str
    stored: tuple[int, ...]
    """the shape of the whole tensor"""
    shape: tuple[int, int]
    transposed: bool = False
    index: int | None = None
    """which matrix of the stack (..., out, in)"""

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """The shape that an entry of this matrix alone has."""
        return self.stored if self.index is None else self.shape


@dataclass
class Plan:
    """The matrices by their keys (the tensor's name; ``name[3]`` in a stack), and the groups that share an input."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    modules: dict[str, list[str]] = field(default_factory=dict)
    """the linear modules of each group whose input is known token by token: calibration can watch them"""

    @property
    def bf16_bytes(self) -> int:
        """The bytes of all matrices in bf16."""
        return 2 * sum(math.prod(piece.shape) for piece in self.pieces.values())

    def add(self, group: str, key: str, piece: Piece) -> None:
        self.pieces[key] = piece
        self.groups.setdefault(group, []).append(key)


def added(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor has no counterpart in the base."""
    return name not in checkpoint


def plan(
    delta: Delta, checkpoint: Checkpoint, model: Any, same: Collection[str] = (), *, calibrated: bool = False
) -> Plan:
    """The matrices among the tensors that ``delta`` changes: linear layers in the model's order, then all others.

    ``same`` names tensors of the delta that do not change the base's own numbers. Shapes are those of the base: rows of
    added tokens are stored apart (:mod:`skillweave.skillzip.rows`).

    A linear layer's weight always is one; every other tensor of two axes or more, where none of its matrix's sides is
    narrow. The weight of a convolution is flattened after its first axis, a tensor of more axes is a stack of matrices
    along its last two. ``calibrated``: find out which inputs calibration can watch.
    """
    made = Plan()
    layout = Layout(model)
    changed = [
        name
        for name in delta.names()
        if not added(checkpoint, name) and name not in checkpoint.tied and name not in same
    ]
    turned = linear_modules(model)
    fed = feeding(model) if calibrated else {}
    for group, members in input_groups(model).items():
        for module in members:
            key = layout.stored_name(f"{module}.weight")
            if key not in changed:
                continue
            shape = checkpoint.shape(key)
            made.add(group, key, Piece(key, shape, shape[::-1] if turned[module] else shape, turned[module]))  # type: ignore[arg-type]
            if module in fed and fed[module].rows != "any":
                made.modules.setdefault(group, []).append(module)
    owner = _owners(model, layout)
    for name in changed:
        if name not in made.pieces:
            _place(made, name, checkpoint.shape(name), owner(name))
    return made


def _owners(model: Any, layout: Layout) -> Callable[[str], nn.Module | None]:
    modules = dict(model.named_modules())

    def owner(name: str) -> nn.Module | None:
        target, joined = layout.place(name)
        return None if joined else modules.get(target.rpartition(".")[0])

    return owner


def _place(made: Plan, name: str, stored: tuple[int, ...], owner: nn.Module | None) -> None:
    if len(stored) < 2:
        return
    if len(stored) == 2 or isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        shape = (stored[0], math.prod(stored[1:]))
        if min(shape) > _NARROW:
            made.add(name, name, Piece(name, stored, shape))
    elif min(stored[-2:]) > _NARROW:
        for index in range(math.prod(stored[:-2])):
            made.add(name, f"{name}[{index}]", Piece(name, stored, (stored[-2], stored[-1]), index=index))
