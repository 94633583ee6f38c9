"""Where a command may write: told before the work, not after it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from skillweave.errors import UserError


def check_place(out: Path) -> None:
    """Raise :class:`UserError` unless ``out`` can be made or replaced: its folder must be one, and ours to write."""
    if out.name in ("", ".."):
        raise UserError(f"--out {out}: name a folder to make; the one you stand in, or above, cannot be replaced")
    there = out.absolute().parent
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file, nothing can lie in it: choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: you may not write in {there}: choose another place")


def check_file(out: Path) -> None:
    """Raise :class:`UserError` unless a file can be written to ``out``; an old one is replaced."""
    check_place(out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it")


def check_folder(out: Path, ours: Callable[[Path], bool], kind: str) -> None:
    """Raise :class:`UserError` where ``out`` holds anything but an older ``kind``: a person's files are not ours."""
    check_place(out)
    if _occupied(out) and not ours(out):
        raise UserError(f"--out {out} holds something that is no {kind}: choose another place")


def check_new_folder(out: Path) -> None:
    """Raise :class:`UserError` where something lies at ``out``: a whole model is too dear to be replaced unasked."""
    check_place(out)
    if _occupied(out):
        raise UserError(f"--out {out} holds something already: choose another place, or delete it first")


def is_run(folder: Path) -> bool:
    """Whether a folder is the work folder of a method, also of one killed before it wrote more than a hidden file."""
    if not folder.is_dir():
        return False
    if all(path.name.startswith(".") for path in folder.iterdir()):
        return True
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"method", "base", "config"} <= set(found)


def _occupied(out: Path) -> bool:
    return out.is_file() or (out.is_dir() and any(out.iterdir()))
