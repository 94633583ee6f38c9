"""Check that the numbers of a pack are numbers that a codec writes: finite, and in the range that the schema allows.

Hashes show that nobody has changed a file since its author wrote it, but not that the author meant well. One NaN in a
scale makes every answer of the pack nonsense. A code of -128 has no positive counterpart, which the integer kernels
rely on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from skillweave.delta.arithmetic import finite
from skillweave.errors import UserError
from skillweave.pack.expected import expected_tensors
from skillweave.pack.integers import LARGEST_SCALE
from skillweave.pack.schema import (
    DifferenceEntry,
    Entry,
    GroupedEntry,
    LowRankEntry,
    MixedEntry,
    PackCard,
    StackedEntry,
    WholeEntry,
    packed_width,
)

_AGAIN = "Make the pack again."
_SMALLEST = torch.finfo(torch.float16).tiny
"""The smallest normal float16. Below it, 1 / smooth is too large for the numbers that it is multiplied with."""


def check_values(card: PackCard, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise :class:`UserError`, with the tensor, unless all numbers of a pack are finite and in range.

    The shapes and dtypes of the tensors must have passed :func:`skillweave.pack.stored.check_tensors`. ``where`` begins
    the message.
    """
    for name, entry in card.entries.items():
        for key in expected_tensors(name, entry):
            wrong = _wrong(key, tensors[key], entry)
            if wrong is None and isinstance(entry, GroupedEntry | MixedEntry) and key.endswith(".codes"):
                wrong = _wrong_stream(tensors[key], entry)
            if wrong is not None:
                raise UserError(f"{where}: the tensor '{key}' {wrong}. {_AGAIN}")
        for key, count, halves in _last_halves(tensors, name, entry):
            if count % 2 and bool((halves >> 4).any()):
                raise UserError(f"{where}: the tensor '{key}' has a code beyond its {count} columns. {_AGAIN}")


def _last_halves(
    tensors: Mapping[str, torch.Tensor], name: str, entry: Entry
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Yield (name of the tensor, number of columns, last byte of each row) for every matrix with four-bit codes."""
    if isinstance(entry, LowRankEntry) and entry.bits == 4:
        yield f"{name}.A", entry.rank, tensors[f"{name}.A"][..., -1]
        yield f"{name}.B", entry.matrix[1], tensors[f"{name}.B"][..., -1]
    elif isinstance(entry, StackedEntry) and entry.bits == 4:
        for index, rank in enumerate(entry.ranks):
            yield f"{name}.A", rank, tensors[f"{name}.A"][:, entry.columns(index)][:, -1:]
        yield f"{name}.B", entry.shape[-1], tensors[f"{name}.B"][..., -1]


def _wrong(key: str, tensor: torch.Tensor, entry: Entry) -> str | None:
    """Return what is wrong with the numbers of one tensor, or None."""
    if tensor.numel() == 0:
        return None
    if tensor.dtype == torch.int8:
        return "holds the code -128; codes are from -127 to 127" if int(tensor.min()) == -128 else None
    if tensor.dtype == torch.uint8 and not isinstance(entry, GroupedEntry | MixedEntry):
        low, high = (tensor & 0xF) == 8, (tensor >> 4) == 8
        return "holds the code -8; codes of 4 bits are from -7 to 7" if bool((low | high).any()) else None
    if not finite(tensor.float() if tensor.element_size() in (1, 8) else tensor):
        return "holds NaN or infinity, or a number beyond float32"
    if key.endswith(("_scale", ".scale", ".smooth")) and not isinstance(entry, DifferenceEntry | WholeEntry):
        if key.endswith(".smooth") and float(tensor.min()) < _SMALLEST:
            return f"holds {float(tensor.min()):.3g}; what inputs are divided by is at least {_SMALLEST:.3g}"
        if bool(torch.signbit(tensor).any()):
            return f"holds the scale {float(tensor.min()):.3g}; scales are not negative"
        if float(tensor.max()) > LARGEST_SCALE:
            return f"holds the scale {float(tensor.max()):.3g}; scales are at most {LARGEST_SCALE:.0f}"
    return None


def _wrong_stream(codes: torch.Tensor, entry: GroupedEntry | MixedEntry) -> str | None:
    """Return what is wrong with codes that are packed as a stream of bits, or None."""
    for bits, length, rows in _blocks(codes, entry):
        if bits == 8 and bool((rows == 0x80).any()):
            return "holds the code -128; codes of 8 bits are from -127 to 127"
        if bits == 4 and bool((((rows & 0xF) == 8) | ((rows >> 4) == 8)).any()):
            return "holds the code -8; codes of 4 bits are from -7 to 7"
        used = (length * bits - 1) % 8 + 1
        if used < 8 and bool((rows[..., -1] >> used).any()):
            return f"has bits after the last of the {length} codes of a row"
    return None


def _blocks(codes: torch.Tensor, entry: GroupedEntry | MixedEntry) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (bits, codes in a row, packed rows) of each block of codes that have one width."""
    if isinstance(entry, GroupedEntry):
        yield entry.bits, entry.matrix[1], codes
        return
    at = 0
    for bits, vectors, length in entry.blocks():
        row_bytes = packed_width(length, bits)
        yield bits, length, codes[:, at : at + vectors * row_bytes].unflatten(1, (vectors, row_bytes))
        at += vectors * row_bytes
