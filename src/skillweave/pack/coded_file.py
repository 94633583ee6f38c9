"""The file ``skillpack.coded``: the tensors of a pack whose integer codes are entropy coded.

After the magic bytes come the lengths of four parts (8 bytes each, little-endian), then the parts:

1. ``tables``: the classes of the rows of codes, and the tables of frequencies (:mod:`skillweave.pack.entropy`);
2. ``codes``: for each coded entry, sorted by name, the columns of A and then the rows of B, each a row of codes;
3. ``scales``: the ``B_scale`` of these entries, one after the other, with the high bytes before the low ones, deflated;
4. ``plain``: all other tensors as a safetensors file, whose values have the bytes of even places before the odd ones
   (for bfloat16, the mantissas before the exponents), deflated.

The card gives the shapes of all coded tensors, so a damaged or hostile file cannot ask for more memory than its card
states, and a card cannot state more codes than the file can hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, deserialize

from skillweave.errors import UserError
from skillweave.pack.entropy import CODES_A_BYTE, inflated
from skillweave.pack.expected import expected_tensors
from skillweave.pack.schema import PackCard, is_coded

MAGIC = b"skcoded\x01"
LARGEST_FILE = 2**34
_HEAD = len(MAGIC) + 4 * 8
REMAKE = "Copy or make the pack again."
_MOST_RATIO = 64
_FREE_BYTES = 2**20
"""Zlib can make a thousand bytes of one. A part holds at most 64 times its bytes in the file, after the first MiB."""
_WIDEST = 8
"""Bytes of one number of the widest dtype."""
_NAME_ROOM = 256
"""More bytes than the header of a safetensors file takes for a tensor, besides its name and its shape."""


@dataclass(frozen=True)
class CodedParts:
    """The parts of a file that is written, as they are in it."""

    tables: bytes
    codes: bytes
    scales: bytes
    plain: bytes

    def to_bytes(self) -> bytes:
        """Return the whole file."""
        every = (self.tables, self.codes, self.scales, self.plain)
        return MAGIC + b"".join(len(part).to_bytes(8, "little") for part in every) + b"".join(every)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of the parts as :class:`skillweave.pack.schema.PackBytes` counts them; ``total`` is the file."""
        matrices = len(self.tables) + len(self.codes)
        sizes = {"matrices": matrices, "scales": len(self.scales), "whole": len(self.plain)}
        return {**sizes, "total": sum(sizes.values()) + _HEAD}


@dataclass(frozen=True)
class ReadParts:
    """The parts of a file that was read: tables and codes as they are in it, scales and plain tensors inflated."""

    tables: bytes
    codes: bytes
    scales: bytes
    plain: bytes


def read_parts(data: bytes, card: PackCard, file: Path) -> tuple[ReadParts, dict[str, tuple[tuple[int, ...], str]]]:
    """Return the parts of a file's bytes, and the shape and the safetensors dtype of its plain tensors; without torch.

    Raises :class:`UserError`, which names the file, if it is damaged, cut off, or larger than the card allows.
    """
    if not data.startswith(MAGIC) or len(data) < _HEAD:
        raise UserError(f"{file} is damaged: it does not begin as such a file does. {REMAKE}")
    lengths = [int.from_bytes(data[at : at + 8], "little") for at in range(len(MAGIC), _HEAD, 8)]
    if sum(lengths) != len(data) - _HEAD:
        raise UserError(
            f"{file} is damaged: its parts take {sum(lengths)} bytes, and it has {len(data) - _HEAD} for them. {REMAKE}"
        )
    ends = [_HEAD + sum(lengths[: at + 1]) for at in range(4)]
    tables, codes, scales, plain = (data[end - length : end] for end, length in zip(ends, lengths, strict=True))
    try:
        scales, plain = _merged_planes(scales, 2 * _ranks(card)), _merged_planes(plain, _plain_room(card))
        kinds = {name: (tuple(values["shape"]), str(values["dtype"])) for name, values in deserialize(plain)}
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{file} is damaged: {error}. {REMAKE}") from error
    return ReadParts(tables, codes, scales, plain), kinds


def check_counts(parts: ReadParts, card: PackCard, file: Path) -> None:
    """Raise :class:`UserError` unless the parts can hold the codes of the card, and hold one scale for each rank."""
    shapes = [coded_shapes(card, name) for name in coded_names(card)]
    codes = sum(math.prod(left) + math.prod(right) for left, right in shapes)
    ranks = _ranks(card)
    if codes > CODES_A_BYTE * len(parts.codes):
        why = f"its {len(parts.codes)} bytes of codes cannot hold the {codes} codes of the card"
    elif len(parts.scales) != 2 * ranks:
        why = f"it holds {len(parts.scales) // 2} scales, and the card has {ranks} ranks"
    else:
        return
    raise UserError(f"{file} is damaged: {why}. {REMAKE}")


def coded_names(card: PackCard) -> list[str]:
    """Return the names of the coded entries, in the order of the file."""
    return sorted(name for name, entry in card.entries.items() if is_coded(entry))


def coded_tensors(card: PackCard) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and torch's name of the dtype of all tensors that are coded in the file."""
    own: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in coded_names(card):
        expected = expected_tensors(name, card.entries[name])
        for part in ("A", "B", "B_scale"):
            shape, dtype = expected[f"{name}.{part}"]
            own[f"{name}.{part}"] = shape, str(dtype)
    return own


def coded_shapes(card: PackCard, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A and B of a coded entry."""
    shapes = expected_tensors(name, card.entries[name])
    return shapes[f"{name}.A"][0], shapes[f"{name}.B"][0]


def _ranks(card: PackCard) -> int:
    """Return the number of ranks of all coded entries. Each has one scale, of two bytes."""
    return sum(coded_shapes(card, name)[1][0] for name in coded_names(card))


def _plain_room(card: PackCard) -> int:
    """Return the most bytes that the plain tensors may take, with the header of their file."""
    room, own = 2 * _NAME_ROOM, coded_tensors(card)
    for name, entry in card.entries.items():
        for key, (shape, _) in expected_tensors(name, entry).items():
            if key not in own:
                room += _WIDEST * math.prod(shape) + 6 * len(key) + 24 * len(shape) + _NAME_ROOM
    return room


def _merged_planes(data: bytes, most: int) -> bytes:
    """Return what :func:`_deflated` got, at most ``most`` bytes. Raises ValueError."""
    planes = inflated(data, min(most, most_inflated(data)))
    result = bytearray(len(planes))
    half = (len(planes) + 1) // 2
    result[0::2], result[1::2] = planes[:half], planes[half:]
    return bytes(result)


def most_inflated(data: bytes) -> int:
    """Return the most bytes that a deflated part may stand for."""
    return _FREE_BYTES + _MOST_RATIO * len(data)
