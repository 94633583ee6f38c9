"""Where a command may write: told before the work, not after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from skillweave.errors import UserError
from skillweave.files.read import is_file, is_folder, read_json

_LONGEST_NAME = 200
"""Bytes: file systems take 255, and a temporary name beside it is longer."""


def check_place(out: Path) -> None:
    """Raise :class:`UserError` unless ``out`` can be made or replaced: its folder must be one, and ours to write."""
    if out.name in ("", ".."):
        raise UserError(f"--out {out}: name a folder to make; the one you stand in, or above, cannot be replaced")
    if len(os.fsencode(out.name)) > _LONGEST_NAME:
        raise UserError(
            f"--out: the name {out.name[:40]}... is longer than {_LONGEST_NAME} bytes: choose a shorter one"
        )
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
        found = read_json(folder / "config.json")
    except UserError:
        return False
    return isinstance(found, dict) and {"method", "base", "config"} <= set(found)


def _occupied(out: Path) -> bool:
    return is_file(out) or (is_folder(out) and any(out.iterdir()))
