"""Write artefacts atomically: a kill or a full disk leaves the old version or the new one, never half of one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skillweave.files.atomic import atomic_file, atomic_folder
from skillweave.files.disk import disk_errors
from skillweave.files.recover import sweep

__all__ = ["atomic_file", "atomic_folder", "disk_errors", "sweep", "write_json", "write_json_lines", "write_text"]


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically. Keys keep their order, so a diff of two runs is easy to read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: str | Path, values: Iterable[Any]) -> None:
    """Write a JSONL file atomically: each value as JSON on a line of its own."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
