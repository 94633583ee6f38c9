"""Ways to write a delta small, one file each. A codec is a function ``(Job) -> Written``, found by name."""

from __future__ import annotations

from collections.abc import Callable

from skillweave.errors import UserError, nearest
from skillweave.skillzip.codecs.skillzip import skillzip
from skillweave.skillzip.codecs.svd import svd
from skillweave.skillzip.job import Job, Written

CODECS: dict[str, Callable[[Job], Written]] = {"skillzip": skillzip, "svd": svd}


def get_codec(name: str) -> Callable[[Job], Written]:
    """The codec called ``name``; an unknown name is a :class:`UserError`."""
    if name not in CODECS:
        raise UserError(f"unknown codec '{name}'; {nearest(name, CODECS)}")
    return CODECS[name]
