"""Codecs: ways to write the matrices of a delta in few bytes, one file each."""

from __future__ import annotations

from collections.abc import Callable

from skillweave.errors import UserError, nearest
from skillweave.skillzip.codecs.bitdelta import bitdelta
from skillweave.skillzip.codecs.delta_come import delta_come
from skillweave.skillzip.codecs.dqrelo import dqrelo
from skillweave.skillzip.codecs.integer_factors import integer_factors
from skillweave.skillzip.codecs.none import none
from skillweave.skillzip.codecs.rtn import rtn4, rtn8
from skillweave.skillzip.codecs.svd import svd
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded
from skillweave.skillzip.source import MatrixSource

CodecFunction = Callable[[ZipConfig, MatrixSource, Draft], Encoded]
"""Reads matrices from the source, and encodes as much of them as fits the draft's budget."""

CODECS: dict[str, CodecFunction] = {
    "skillzip": integer_factors,
    "svd": svd,
    "bitdelta": bitdelta,
    "delta-come": delta_come,
    "dqrelo": dqrelo,
    "rtn8": rtn8,
    "rtn4": rtn4,
    "none": none,
}


def get_codec(name: str) -> CodecFunction:
    """Return the codec called ``name``. Raises :class:`UserError` for an unknown name."""
    if name not in CODECS:
        raise UserError(f"unknown codec '{name}'; {nearest(name, CODECS)}")
    return CODECS[name]
