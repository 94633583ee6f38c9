"""Hashes of files and of JSON-like values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from skillweave.files.read import open_file


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex. The file is read in pieces."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """A short stable name (16 hex digits) of a JSON-like value: equal values have equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shortened(one: str, other: str) -> tuple[str, str]:
    """Two different fingerprints for a message, each cut, but not before their first difference."""
    differ = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    width = max(19, next(differ, min(len(one), len(other))) + 1)
    first, second = (f"{text[:width]}..." if len(text) > width else text for text in (one, other))
    return first, second
