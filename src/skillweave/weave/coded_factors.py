"""The integer factors of a pack while no batch uses it: their codes are entropy coded, as in the pack's file.

A weave may hold far more packs than a batch uses. Coded, a pack takes about half the memory of its laid-out factors
(:mod:`skillweave.weave.factors`). The codes are written anew in the order in which they are laid out, whatever the
layout of the pack's file. All that was read was checked before, so the bytes kept here are those of a sound pack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from skillweave.pack import LowRank
from skillweave.pack.entropy import decode, encode
from skillweave.weave.compiled import compiled
from skillweave.weave.factors import Factors, aligned, mapped, placed_at, scale_bytes

Groups = dict[str, dict[str, Factors]]
"""group -> module -> laid-out factors"""


@dataclass(frozen=True, slots=True)
class Target:
    """A matrix of a pack, and what it changes."""

    tensor: str
    group: str
    modules: tuple[str, ...]
    """the modules that hold the tensor"""


@dataclass(frozen=True, slots=True)
class _Matrix:
    group: str
    modules: tuple[str, ...]
    placed: Factors
    """the factors as they will lie in the buffer, without it"""


class CodedFactors:
    """One pack's factors of the matrices on one device."""

    def __init__(self, targets: Iterable[Target], parts: Callable[[str], LowRank], device: torch.device) -> None:
        """Code the factors; ``parts`` gives those of a tensor. Raises ValueError for a code of -128."""
        self._device = device
        self._matrices: list[_Matrix] = []
        codes, scales = [torch.zeros(0, dtype=torch.int8)], [torch.zeros(0, dtype=torch.uint8)]
        end = 0
        for target in targets:
            own = parts(target.tensor)
            placed, order = placed_at(end, own)
            end = aligned(end + placed.nbytes)
            codes += [own.A.T[order].flatten(), own.B[order].flatten()]
            scales.append(scale_bytes(placed, own, order))
            self._matrices.append(_Matrix(target.group, target.modules, placed))
        self.laid_out_nbytes = end
        """the bytes that the factors take when they are laid out"""
        tables, body = encode(torch.cat(codes).numpy(), self._lengths)
        # The codes come first: they are read two bytes at a time.
        kept = [torch.frombuffer(bytearray(body), dtype=torch.uint8), torch.cat(scales)]
        kept.append(torch.frombuffer(bytearray(tables), dtype=torch.uint8))
        self._sizes = [part.nbytes for part in kept]
        self._kept = torch.cat(kept, out=mapped(sum(self._sizes)))

    @property
    def nbytes(self) -> int:
        """The bytes of the coded factors."""
        return self._kept.nbytes

    @property
    def modules(self) -> list[str]:
        """The modules that the matrices change."""
        return [module for matrix in self._matrices for module in matrix.modules]

    @property
    def widths(self) -> dict[str, int]:
        """The number of inputs of the matrices of each group."""
        return {matrix.group: matrix.placed.inner for matrix in self._matrices}

    @property
    def widened_nbytes(self) -> int:
        """The bytes of the codes as the compiled functions read them; 0 if those do not compute the products."""
        return _widened_nbytes((matrix.placed for matrix in self._matrices for _ in matrix.modules), self._device)

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> CodedFactors:
        """A copy whose bytes are those that ``change`` gives."""
        other = copy.copy(self)
        other._kept = change(self._kept)
        return other

    def laid_out(self) -> Groups:
        """The factors in one buffer on the device."""
        body, scales, tables = self._kept.split(self._sizes)
        codes = torch.from_numpy(decode(tables.numpy().tobytes(), body.numpy().data, self._lengths))
        flat = mapped(self.laid_out_nbytes)
        code = scale = 0
        for placed in (matrix.placed for matrix in self._matrices):
            own = replace(placed, flat=flat)
            own.scales.copy_(scales[scale : scale + own.scale_nbytes])
            middle, end = code + own.rank * own.out, code + own.rank * (own.out + own.inner)
            own.fill(codes[code:middle].view(own.rank, own.out), codes[middle:end].view(own.rank, own.inner))
            code, scale = end, scale + own.scale_nbytes
        flat = flat.to(self._device)
        groups: Groups = {}
        for matrix in self._matrices:
            groups.setdefault(matrix.group, {}).update(dict.fromkeys(matrix.modules, replace(matrix.placed, flat=flat)))
        return groups

    @property
    def _lengths(self) -> list[int]:
        """The lengths of the rows of codes: for each matrix the columns of A, and then the rows of B."""
        shapes = [matrix.placed for matrix in self._matrices]
        return [length for own in shapes for length in [own.out] * own.rank + [own.inner] * own.rank]


class LaidOutFactors:
    """One pack's factors of the matrices on one device, which are never coded: they are always ready for a batch."""

    laid_out_nbytes = 0
    """the bytes that the factors take in addition when a batch uses them"""

    def __init__(self, targets: Iterable[Target], parts: Callable[[str], LowRank], device: torch.device) -> None:
        """Lay the factors out; ``parts`` gives those of a tensor."""
        matrices = []
        end = 0
        for target in targets:
            own = parts(target.tensor)
            placed, order = placed_at(end, own)
            end = aligned(end + placed.nbytes)
            matrices.append((target, placed, order, own))
        self.nbytes = end
        self._groups: Groups = {}
        flat = mapped(end)
        for _, placed, order, own in matrices:
            made = replace(placed, flat=flat)
            made.scales.copy_(scale_bytes(placed, own, order))
            made.fill(own.A.T[order], own.B[order])
        self._flat = flat.to(device)
        for target, placed, _, _ in matrices:
            on_device = replace(placed, flat=self._flat)
            self._groups.setdefault(target.group, {}).update(dict.fromkeys(target.modules, on_device))

    @property
    def modules(self) -> list[str]:
        """The modules that the matrices change."""
        return [module for own in self._groups.values() for module in own]

    @property
    def widths(self) -> dict[str, int]:
        """The number of inputs of the matrices of each group."""
        return {group: factors.inner for group, own in self._groups.items() for factors in own.values()}

    @property
    def widened_nbytes(self) -> int:
        """The bytes of the codes as the compiled functions read them; 0 if those do not compute the products."""
        return _widened_nbytes((own for group in self._groups.values() for own in group.values()), self._flat.device)

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LaidOutFactors:
        """A copy whose buffer is the one that ``change`` gives."""
        other = copy.copy(self)
        flat = other._flat = change(self._flat)
        other._groups = {
            group: {module: replace(factors, flat=flat) for module, factors in own.items()}
            for group, own in self._groups.items()
        }
        return other

    def laid_out(self) -> Groups:
        """The factors in one buffer on the device."""
        return self._groups


def _widened_nbytes(factors: Iterable[Factors], device: torch.device) -> int:
    if device.type != "cpu" or compiled() is None:
        return 0
    return sum(own.widened_nbytes for own in factors)
