"""Entropy coding of rows of integer codes: rANS with a table of frequencies for rows of about the same size.

rANS (Duda, arXiv 1311.2540) writes a code of frequency f in about -log2(f) bits, also if that is less than one bit.
Huffman codes, and with them zstd and deflate, take a whole number of bits for each code, so they waste up to a seventh
of the bytes of factors whose codes have an entropy of about 2 bits. The 11.8 million codes of a pack of SmolLM2-135M at
1/32 (2.2 bits a code) take 15% more bytes than their entropy with zstd (level 19), and 0.2% more with this coder,
tables included.

The large codes of leading directions and the small ones of the others have different frequencies. So each row belongs
to one of a few classes by the root mean square of its codes, and each class has its own table. Many states (lanes) take
turns. Where there is a C++ compiler, the loops over the codes are compiled (rans.cpp); elsewhere numpy advances all
lanes in one operation, which takes longer and gives the same bytes.

The bytes are the same on every machine. Whatever bytes the decoder gets, it gives codes in [-127, 127] or raises
ValueError, and takes memory for at most :data:`CODES_A_BYTE` codes for each byte.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skillweave.files.native import allowed, library

Codes = NDArray[np.int8]
Tables = NDArray[np.uint16]
"""For each class the frequencies of the codes -127 to 127 (classes, 255): 0 for those that do not occur."""


class _Rows(NamedTuple):
    """What the loops over the codes need to know about the rows."""

    classes: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    tables: Tables

    @property
    def addresses(self) -> tuple[int, ...]:
        """The arguments of the functions of rans.cpp."""
        classes, lengths, tables = (part.ctypes.data for part in self)
        return classes, lengths, len(self.lengths), tables, len(self.tables)


LARGEST_CODE = 127
CODES_A_BYTE = 256
"""No code takes less than 1/32 bit, so a byte holds at most this many codes."""
_BITS = 14
_TOTAL = 1 << _BITS
_MOST = int(_TOTAL * 2 ** (-8 / CODES_A_BYTE))
"""The largest frequency of a code, out of ``_TOTAL``."""
_LOWEST = 1 << 16
"""A state is between this and 2**32; when it falls below, it takes in 16 more bits."""
_CLASSES = 24
"""Classes are half an octave wide: from codes that are nearly all 0 to those that fill the range."""


def encode(codes: Codes, lengths: Sequence[int]) -> tuple[bytes, bytes]:
    """Return two byte strings: the classes of the rows with their tables, and the codes themselves.

    ``codes`` are those of all rows, one row after the other. Raises ValueError for a code of -128.
    """
    if codes.min(initial=0) < -LARGEST_CODE:
        raise ValueError(f"it has a code of {codes.min()}, and codes are from {-LARGEST_CODE} to {LARGEST_CODE}")
    own_lengths = np.array(lengths, np.int64)
    classes, tables = _tables(np.split(codes, np.cumsum(own_lengths)[:-1]) if len(own_lengths) else [])
    head = bytearray([len(tables)])
    for table in tables:
        largest = max(1, int(np.abs(np.flatnonzero(table) - LARGEST_CODE).max()))
        own = table[LARGEST_CODE - largest : LARGEST_CODE + largest + 1]
        head += bytes([largest]) + own.astype("<u2").tobytes()
    head += classes.tobytes()
    states = np.full(_lanes(len(codes)), _LOWEST, np.uint32)
    rows = _Rows(classes, own_lengths, tables)
    words = (_encode if _compiled() is None else _encode_compiled)(codes, states, rows)
    return zlib.compress(bytes(head), 9), states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def decode(head: bytes, body: bytes | memoryview, lengths: Sequence[int]) -> Codes:
    """Return all codes of the rows that :func:`encode` wrote, one row after the other.

    The lengths of the rows must be known. Raises ValueError for damaged bytes.
    """
    total = sum(lengths)
    if total > CODES_A_BYTE * len(body):
        raise ValueError(f"{len(body)} bytes cannot hold {total} codes")
    classes, tables = _read_head(head, len(lengths))
    lanes = _lanes(total)
    if len(body) < 4 * lanes or len(body) % 2:
        raise ValueError("the codes are cut off")
    states = np.frombuffer(body, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(body, "<u2", offset=4 * lanes)
    codes = np.empty(total, np.int8)
    own_decode = _decode if _compiled() is None else _decode_compiled
    read = own_decode(words, states, _Rows(classes, np.array(lengths, np.int64), tables), codes)
    if read != len(words) or bool((states != _LOWEST).any()):
        raise ValueError("the codes are damaged: they do not end where a coder ends")
    return codes


def inflated(data: bytes, most: int) -> bytes:
    """Return what zlib compressed into ``data``; at most ``most`` bytes are ever made. Raises ValueError."""
    reader = zlib.decompressobj()
    try:
        result = reader.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed part is damaged ({error})") from error
    if len(result) > most:
        raise ValueError(f"a compressed part holds more than the {most} bytes that it may hold")
    if not reader.eof or reader.unused_data:
        raise ValueError("a compressed part is cut off, or has bytes after its end")
    return result


def _tables(rows: Sequence[Codes]) -> tuple[NDArray[np.uint8], Tables]:
    """Return the class of each row, and the frequencies of each class."""
    sizes = [float(np.square(row, dtype=np.float64).mean()) if len(row) else 0.0 for row in rows]
    # log2 of a mean square is in octaves of half: a step of 1 is a factor of sqrt(2) in the codes.
    wanted = np.array([0 if s == 0 else min(max(math.floor(math.log2(s)) + 10, 0), _CLASSES - 1) for s in sizes])
    present = sorted(set(wanted.tolist()))
    classes = np.searchsorted(present, wanted).astype(np.uint8)
    tables = np.zeros((len(present), 2 * LARGEST_CODE + 1), np.uint16)
    for index, table in enumerate(tables):
        counts = _counts([row for row, own in zip(rows, classes, strict=True) if own == index])
        largest = max(1, int(np.abs(np.flatnonzero(counts) - LARGEST_CODE).max(initial=0)))
        used = slice(LARGEST_CODE - largest, LARGEST_CODE + largest + 1)
        table[used] = _frequencies(counts[used])
    return classes, tables


def _counts(rows: Sequence[Codes]) -> NDArray[np.int64]:
    """Return how often each code from -127 to 127 occurs."""
    counts = np.zeros(2 * LARGEST_CODE + 1, np.int64)
    for row in rows:
        counts += np.bincount(row.astype(np.int16) + LARGEST_CODE, minlength=len(counts))
    return counts


def _frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return frequencies from 1 to ``_MOST`` whose sum is ``_TOTAL``, about proportional to the counts."""
    table = np.maximum(1, (counts * (_TOTAL - len(counts))) // max(1, int(counts.sum())))
    largest = int(table.argmax())
    table[largest] += _TOTAL - int(table.sum())
    excess = max(0, int(table[largest]) - _MOST)
    table[largest] -= excess
    table[largest - 1 if largest else 1] += excess
    return table


def _read_head(head: bytes, rows: int) -> tuple[NDArray[np.uint8], Tables]:
    data = inflated(head, 1 + _CLASSES * (1 + 2 * (2 * LARGEST_CODE + 1)) + rows)
    count = data[0] if data else 0
    at, tables = 1, np.zeros((count, 2 * LARGEST_CODE + 1), np.uint16)
    for whole in tables:
        entries = 2 * data[at] + 1 if at < len(data) else 0
        table = np.frombuffer(data[at + 1 : at + 1 + 2 * entries], "<u2").astype(np.int64)
        at += 1 + 2 * entries
        if not 3 <= entries <= 2 * LARGEST_CODE + 1 or len(table) != entries:
            raise ValueError("a table of frequencies is cut off, or has no length that one can have")
        if int(table.sum()) != _TOTAL or int(table.min()) < 1 or int(table.max()) > _MOST:
            raise ValueError("the frequencies of a table are none that a coder writes")
        whole[LARGEST_CODE - entries // 2 : LARGEST_CODE + entries // 2 + 1] = table
    classes = np.frombuffer(data[at:], np.uint8)
    if len(classes) != rows or (rows and int(classes.max()) >= count):
        raise ValueError(f"there are {len(classes)} classes of rows, or of another number of tables, for {rows} rows")
    return classes, tables


def _lanes(total: int) -> int:
    """Return how many states are advanced together: each takes 4 bytes, and few make the loop long."""
    return max(1, math.isqrt(total) // 8)


def _encode(codes: Codes, states: NDArray[np.uint32], rows: _Rows) -> NDArray[np.uint16]:
    """Return the words, and leave the states as the decoder must begin."""
    classes, lengths, tables = rows
    frequency_of, start_of = tables.ravel().astype(np.uint64), _starts(tables).ravel().astype(np.uint64)
    # One index into the flattened tables for each code; two bytes hold all of them.
    symbols = np.repeat(classes, lengths).astype(np.uint16) * np.uint16(tables.shape[1])
    symbols += (codes.astype(np.int16) + LARGEST_CODE).astype(np.uint16)
    lanes = len(states)
    words = [np.zeros(0, np.uint16)]
    for at in reversed(range(0, len(codes), lanes)):
        chosen = symbols[at : at + lanes]
        own, state = frequency_of[chosen], states[: len(chosen)].astype(np.uint64)
        full = state >= own << np.uint64(32 - _BITS)
        words.append(state[full].astype(np.uint16))
        state = np.where(full, state >> np.uint64(16), state)
        quotient, rest = np.divmod(state, own)
        states[: len(chosen)] = (quotient << np.uint64(_BITS)) + rest + start_of[chosen]
    return np.concatenate(words[::-1])


def _decode(words: NDArray[np.uint16], states: NDArray[np.uint32], rows: _Rows, codes: Codes) -> int:
    """Write all codes, advance the states to their end, and return how many words were read; -1: there are too few."""
    classes, lengths, tables = rows
    code = np.zeros((len(tables), _TOTAL), np.int8)
    frequency, start = np.zeros((2, len(tables), _TOTAL), np.uint64)
    for index, (table, own_starts) in enumerate(zip(tables, _starts(tables), strict=True)):
        code[index] = np.repeat(np.arange(-LARGEST_CODE, LARGEST_CODE + 1), table)
        frequency[index] = np.repeat(table, table)
        start[index] = np.repeat(own_starts, table)
    code_of, frequency_of, start_of = code.ravel(), frequency.ravel(), start.ravel()
    class_of = np.repeat(classes, lengths)
    lanes, read = len(states), 0
    for at in range(0, len(codes), lanes):
        first = class_of[at : at + lanes].astype(np.uint64) << np.uint64(_BITS)
        state = states[: len(first)].astype(np.uint64)
        slot = state & np.uint64(_TOTAL - 1)
        place = first + slot
        codes[at : at + lanes] = code_of[place]
        state = frequency_of[place] * (state >> np.uint64(_BITS)) + slot - start_of[place]
        low = state < _LOWEST
        needed = int(low.sum())
        if read + needed > len(words):
            return -1
        state[low] = (state[low] << np.uint64(16)) | words[read : read + needed].astype(np.uint64)
        read += needed
        states[: len(first)] = state
    return read


def _starts(tables: Tables) -> NDArray[np.int64]:
    """Return, for each class, the sum of the frequencies before each code."""
    return np.cumsum(tables, axis=1, dtype=np.int64) - tables


def _encode_compiled(codes: Codes, states: NDArray[np.uint32], rows: _Rows) -> NDArray[np.uint16]:
    """:func:`_encode` in rans.cpp."""
    words = np.empty(len(codes), np.uint16)
    unused = _compiled().sw_rans_encode(
        codes.ctypes.data, len(codes), states.ctypes.data, len(states), *rows.addresses, words.ctypes.data
    )
    return words[unused:]


def _decode_compiled(words: NDArray[np.uint16], states: NDArray[np.uint32], rows: _Rows, codes: Codes) -> int:
    """:func:`_decode` in rans.cpp."""
    read: int = _compiled().sw_rans_decode(
        words.ctypes.data, len(words), states.ctypes.data, len(states), *rows.addresses, codes.ctypes.data
    )
    return read


@functools.cache
def _compiled() -> Any:
    """The library with the functions of rans.cpp, or None. It is compiled at the first call on a machine."""
    if not allowed() or sys.byteorder != "little":
        return None
    made = library(Path(__file__).with_name("rans.cpp"), "the codes of packs are read with numpy, which takes longer")
    if made is not None:
        address, number = ctypes.c_void_p, ctypes.c_int64
        made.sw_rans_decode.argtypes = [
            address, number, address, number, address, address, number, address, number, address
        ]  # fmt: skip
        made.sw_rans_encode.argtypes = made.sw_rans_decode.argtypes
        made.sw_rans_decode.restype = made.sw_rans_encode.restype = number
    return made
