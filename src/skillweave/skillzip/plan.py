"""Plan which changed tensors are written as matrices in two factors, and how each tensor becomes a matrix."""

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
"""Two factors do not pay for a matrix with a side of at most this: ``ZipConfig.other`` decides about it, unless it
belongs to a linear layer."""


@dataclass(frozen=True)
class Piece:
    """A changed matrix (out, in): a whole tensor, possibly transposed or flattened, or one matrix of a stack."""

    tensor: str
    stored: tuple[int, ...]
    """the shape of the whole tensor"""
    shape: tuple[int, int]
    transposed: bool = False
    index: int | None = None
    """which matrix of the stack (..., out, in); None: not a stack"""

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """The ``shape`` of an entry for this matrix alone."""
        return self.stored if self.index is None else self.shape


@dataclass
class Plan:
    """The matrices by their keys (the tensor's name; ``name[3]`` in a stack), and the groups that share an input."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    modules: dict[str, list[str]] = field(default_factory=dict)
    """for each group, the linear modules whose input is known token by token, so that calibration can watch them"""

    @property
    def bf16_bytes(self) -> int:
        """The bytes of all matrices in bf16."""
        return 2 * sum(math.prod(piece.shape) for piece in self.pieces.values())

    def add(self, group: str, key: str, piece: Piece) -> None:
        """Add one matrix to a group."""
        self.pieces[key] = piece
        self.groups.setdefault(group, []).append(key)


def added(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a tensor has no counterpart in the base."""
    return name not in checkpoint


def plan(
    delta: Delta, checkpoint: Checkpoint, model: Any, unchanged: Collection[str] = (), *, calibrated: bool = False
) -> Plan:
    """Return the matrices among the tensors that ``delta`` changes: linear layers in model order, then all others.

    * The weight of a linear layer is always a matrix.
    * Every other tensor of two or more axes is one, if no side of the matrix is narrow. The weight of a convolution is
      flattened after its first axis. Any other tensor of more than two axes is a stack of matrices (its last two axes).
    * Shapes are those of the base. Rows of added tokens are stored separately (:mod:`skillweave.skillzip.rows`).
    * ``unchanged`` names tensors of the delta that leave the base's own numbers as they are.
    * With ``calibrated``, the plan also finds out which inputs calibration can watch.
    """
    result = Plan()
    layout = Layout(model)
    changed = [
        name
        for name in delta.names()
        if not added(checkpoint, name) and name not in checkpoint.tied and name not in unchanged
    ]
    transposed = linear_modules(model)
    fed = feeding(model) if calibrated else {}
    for group, members in input_groups(model).items():
        for module in members:
            key = layout.stored_name(f"{module}.weight")
            if key not in changed:
                continue
            shape = checkpoint.shape(key)
            out, in_ = shape[::-1] if transposed[module] else shape
            result.add(group, key, Piece(key, shape, (out, in_), transposed[module]))
            if module in fed and fed[module].rows != "any":
                result.modules.setdefault(group, []).append(module)
    owner = _owners(model, layout)
    for name in changed:
        if name not in result.pieces:
            _place(result, name, checkpoint.shape(name), owner(name))
    return result


def _owners(model: Any, layout: Layout) -> Callable[[str], nn.Module | None]:
    """Return a function from a tensor's name to the module that owns it; None if the tensor is part of another one."""
    modules = dict(model.named_modules())

    def owner(name: str) -> nn.Module | None:
        target, joined = layout.place(name)
        return None if joined else modules.get(target.rpartition(".")[0])

    return owner


def _place(result: Plan, name: str, stored: tuple[int, ...], owner: nn.Module | None) -> None:
    """Add the matrices of a tensor that belongs to no linear layer, if it has any; each is a group of its own."""
    if len(stored) < 2:
        return
    if len(stored) == 2 or isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        shape = (stored[0], math.prod(stored[1:]))
        if min(shape) > _NARROW:
            result.add(name, name, Piece(name, stored, shape))
    elif min(stored[-2:]) > _NARROW:
        for index in range(math.prod(stored[:-2])):
            result.add(name, f"{name}[{index}]", Piece(name, stored, (stored[-2], stored[-1]), index=index))
