"""Entropy coding of rows of integer codes: rANS with a table of frequencies for rows of about the same size.

rANS (Duda, arXiv 1311.2540) writes a code of frequency f in about -log2(f) bits, also if that is less than one bit.
Huffman codes, and with them zstd and deflate, take a whole number of bits for each code, so they waste up to a seventh
of the bytes of factors whose codes have an entropy of about 2 bits. The 11.8 million codes of a pack of SmolLM2-135M at
1/32 (2.2 bits a code) take 15% more bytes than their entropy with zstd (level 19), and 0.2% more with this coder,
tables included.

The large codes of leading directions and the small ones of the others have different frequencies. So each row belongs
to one of a few classes by the root mean square of its codes, and each class has its own table. Many states (lanes) are
advanced at the same time in one numpy operation, because a loop over codes in Python would take minutes.

The bytes are the same on every machine. Whatever bytes the decoder gets, it gives codes in [-127, 127] or raises
ValueError, and takes memory for at most :data:`CODES_A_BYTE` codes for each byte.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int8]

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


def encode(rows: Sequence[Codes]) -> tuple[bytes, bytes]:
    """Return the rows as two byte strings: the classes with their tables, and the codes themselves.

    The codes must be in [-127, 127].
    """
    classes, tables = _tables(rows)
    head = bytearray([len(tables)])
    for table in tables:
        head += bytes([len(table) // 2]) + table.astype("<u2").tobytes()
    head += classes.tobytes()
    return zlib.compress(bytes(head), 9), _encode(rows, classes, tables)


def decode(head: bytes, body: bytes, lengths: Sequence[int]) -> list[Codes]:
    """Return the rows that :func:`encode` wrote, whose lengths must be known. Raises ValueError for damaged bytes."""
    total = sum(lengths)
    if total > CODES_A_BYTE * len(body):
        raise ValueError(f"{len(body)} bytes cannot hold {total} codes")
    classes, tables = _read_head(head, len(lengths))
    codes = _decode(body, np.repeat(classes, lengths), tables)
    ends = np.cumsum(lengths)
    return [codes[end - length : end] for end, length in zip(ends, lengths, strict=True)]


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


def _tables(rows: Sequence[Codes]) -> tuple[NDArray[np.uint8], list[NDArray[np.int64]]]:
    """Return the class of each row, and for each class the frequencies of the codes -largest to largest."""
    sizes = [float(np.square(row, dtype=np.float64).mean()) if len(row) else 0.0 for row in rows]
    # log2 of a mean square is in octaves of half: a step of 1 is a factor of sqrt(2) in the codes.
    wanted = np.array([0 if s == 0 else min(max(math.floor(math.log2(s)) + 10, 0), _CLASSES - 1) for s in sizes])
    present = sorted(set(wanted.tolist()))
    classes = np.searchsorted(present, wanted).astype(np.uint8)
    tables = []
    for index in range(len(present)):
        counts = _counts([row for row, own in zip(rows, classes, strict=True) if own == index])
        largest = max(1, int(np.abs(np.flatnonzero(counts) - LARGEST_CODE).max(initial=0)))
        tables.append(_frequencies(counts[LARGEST_CODE - largest : LARGEST_CODE + largest + 1]))
    return classes, tables


def _counts(rows: Sequence[Codes]) -> NDArray[np.int64]:
    """Return how often each code from -127 to 127 occurs."""
    counts = np.zeros(2 * LARGEST_CODE + 1, np.int64)
    for row in rows:
        counts += np.bincount(row.astype(np.int64) + LARGEST_CODE, minlength=len(counts))
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


def _read_head(head: bytes, rows: int) -> tuple[NDArray[np.uint8], list[NDArray[np.int64]]]:
    data = inflated(head, 1 + _CLASSES * (1 + 2 * (2 * LARGEST_CODE + 1)) + rows)
    count = data[0] if data else 0
    at, tables = 1, []
    for _ in range(count):
        entries = 2 * data[at] + 1 if at < len(data) else 0
        table = np.frombuffer(data[at + 1 : at + 1 + 2 * entries], "<u2").astype(np.int64)
        at += 1 + 2 * entries
        if not 3 <= entries <= 2 * LARGEST_CODE + 1 or len(table) != entries:
            raise ValueError("a table of frequencies is cut off, or has no length that one can have")
        if int(table.sum()) != _TOTAL or int(table.min()) < 1 or int(table.max()) > _MOST:
            raise ValueError("the frequencies of a table are none that a coder writes")
        tables.append(table)
    classes = np.frombuffer(data[at:], np.uint8)
    if len(classes) != rows or (rows and int(classes.max()) >= count):
        raise ValueError(f"there are {len(classes)} classes of rows, or of another number of tables, for {rows} rows")
    return classes, tables


def _lanes(total: int) -> int:
    """Return how many states are advanced together: each takes 4 bytes, and few make the loop long."""
    return max(1, math.isqrt(total) // 8)


def _encode(rows: Sequence[Codes], classes: NDArray[np.uint8], tables: Sequence[NDArray[np.int64]]) -> bytes:
    total = sum(map(len, rows))
    frequency = np.zeros((len(tables), 2 * LARGEST_CODE + 1), np.uint64)
    for index, table in enumerate(tables):
        largest = len(table) // 2
        frequency[index, LARGEST_CODE - largest : LARGEST_CODE + largest + 1] = table
    start = np.cumsum(frequency, axis=1, dtype=np.uint64) - frequency
    # One index into the flattened tables for each code; two bytes hold all of them.
    symbols = np.empty(total, np.uint16)
    filled = 0
    for row, own_class in zip(rows, classes.tolist(), strict=True):
        symbols[filled : filled + len(row)] = row.astype(np.int16) + (LARGEST_CODE + own_class * frequency.shape[1])
        filled += len(row)
    frequency_of, start_of = frequency.ravel(), start.ravel()
    lanes = _lanes(total)
    states = np.full(lanes, _LOWEST, np.uint64)
    words = []
    for at in reversed(range(0, total, lanes)):
        chosen = symbols[at : at + lanes]
        own, state = frequency_of[chosen], states[: len(chosen)]
        full = state >= own << np.uint64(32 - _BITS)
        words.append(state[full].astype("<u2"))
        state = np.where(full, state >> np.uint64(16), state)
        quotient, rest = np.divmod(state, own)
        states[: len(chosen)] = (quotient << np.uint64(_BITS)) + rest + start_of[chosen]
    return states.astype("<u4").tobytes() + b"".join(word.tobytes() for word in reversed(words))


def _decode(body: bytes, classes: NDArray[np.uint8], tables: Sequence[NDArray[np.int64]]) -> Codes:
    total = len(classes)
    lanes = _lanes(total)
    if len(body) < 4 * lanes or len(body) % 2:
        raise ValueError("the codes are cut off")
    states = np.frombuffer(body[: 4 * lanes], "<u4").astype(np.uint64)
    words = np.frombuffer(body[4 * lanes :], "<u2").astype(np.uint64)
    code = np.zeros((len(tables), _TOTAL), np.int8)
    frequency, start = np.zeros((2, len(tables), _TOTAL), np.uint64)
    for index, table in enumerate(tables):
        largest = len(table) // 2
        code[index] = np.repeat(np.arange(-largest, largest + 1), table)
        frequency[index] = np.repeat(table, table)
        start[index] = np.repeat(np.cumsum(table) - table, table)
    code_of, frequency_of, start_of = code.ravel(), frequency.ravel(), start.ravel()
    result = np.empty(total, np.int8)
    read = 0
    for at in range(0, total, lanes):
        first = classes[at : at + lanes].astype(np.uint64) << np.uint64(_BITS)
        state = states[: len(first)]
        slot = state & np.uint64(_TOTAL - 1)
        place = first + slot
        result[at : at + lanes] = code_of[place]
        state = frequency_of[place] * (state >> np.uint64(_BITS)) + slot - start_of[place]
        low = state < _LOWEST
        needed = int(low.sum())
        if read + needed > len(words):
            raise ValueError("the codes are cut off")
        state[low] = (state[low] << np.uint64(16)) | words[read : read + needed]
        read += needed
        states[: len(first)] = state
    if read != len(words) or bool((states != _LOWEST).any()):
        raise ValueError("the codes are damaged: they do not end where a coder ends")
    return result
