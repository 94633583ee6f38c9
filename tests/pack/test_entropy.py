"""rANS: what is written is read, in about the bytes of the entropy; damaged and hostile bytes are refused."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from skillweave.pack import entropy
from skillweave.pack.entropy import CODES_A_BYTE, decode, encode


def rows_of(sizes: list[int], spread: float = 1.5, seed: int = 0) -> list[np.ndarray]:
    source = np.random.default_rng(seed)
    return [
        np.clip(np.round(source.standard_normal(n) * spread * 2.0 ** source.uniform(-1, 1)), -127, 127).astype(np.int8)
        for n in sizes
    ]


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs with the compiled loops, where they can be made, and with those of numpy."""
    if request.param == "numpy":
        monkeypatch.setattr(entropy, "_compiled", lambda: None)
    elif entropy._compiled() is None:
        pytest.skip("there is no C++ compiler")


def written(rows: list[np.ndarray]) -> tuple[bytes, bytes]:
    return encode(np.concatenate([np.zeros(0, np.int8), *rows]), [len(row) for row in rows])


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [np.zeros(0, np.int8)],
        rows_of([1]),
        rows_of([1, 2, 3, 50, 700]),
        [np.zeros(5000, np.int8)],
        [np.full(300, -127, np.int8), np.full(300, 127, np.int8), np.arange(-127, 128).astype(np.int8)],
        rows_of([999] * 7, 0.05),
        rows_of([4000] * 3, 60),
    ],
)
def test_what_is_written_is_read(rows: list[np.ndarray]) -> None:
    head, body = written(rows)
    with pytest.MonkeyPatch.context() as other:
        other.setattr(entropy, "_compiled", lambda: None)
        assert (head, body) == written(rows)
    got = decode(head, body, [len(row) for row in rows])
    assert np.array_equal(got, np.concatenate([np.zeros(0, np.int8), *rows]))


def test_it_takes_about_the_entropy() -> None:
    rows = rows_of([3000] * 60)
    bits = 0.0
    for row in rows:  # each row by its own counts: no coder without a table for each row can do that
        for count in np.unique(row, return_counts=True)[1]:
            bits -= count * math.log2(count / len(row))
    taken = sum(map(len, written(rows)))
    assert bits / 8 < taken < 1.025 * bits / 8


def test_damage_is_noticed() -> None:
    rows = rows_of([400, 500])
    lengths = [400, 500]
    head, body = written(rows)
    for wrong in (body[:-2], body + b"\0\0", body[:-1], b"", body[:9]):
        with pytest.raises(ValueError, match="codes"):
            decode(head, wrong, lengths)
    for at in range(0, len(body), 7):
        damaged = body[:at] + bytes([body[at] ^ 16]) + body[at + 1 :]
        with pytest.raises(ValueError, match="codes"):
            decode(head, damaged, lengths)
    for wrong in (b"", head[:-3], head + b"x", zlib.compress(b""), zlib.compress(b"\xff"), zlib.compress(bytes(4000))):
        with pytest.raises(ValueError, match=r"table|compressed|classes"):
            decode(wrong, body, lengths)


def test_a_short_file_cannot_ask_for_much_memory() -> None:
    head, body = written([np.zeros(10_000, np.int8)])
    assert len(body) >= 10_000 / CODES_A_BYTE
    with pytest.raises(ValueError, match="cannot hold"):
        decode(head, body, [10**12])
    certain = bytes([1, 1]) + np.array([0, 2**14, 0], "<u2").tobytes() + b"\0"  # a code that takes no bits at all
    with pytest.raises(ValueError, match="frequencies"):
        decode(zlib.compress(certain), body, [10_000])


def test_a_code_without_a_counterpart_is_refused() -> None:
    with pytest.raises(ValueError, match="a code of -128"):
        encode(np.array([3, -128], np.int8), [2])
