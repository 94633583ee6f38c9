"""Read several files of a folder that another process may replace meanwhile, and get those of one version."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from skillweave.errors import UserError

T = TypeVar("T")
_TRIES = 20
_PAUSE = 0.02
"""Seconds between two tries."""


def read_whole(folder: str | Path, parts: Collection[str], read: Callable[[], T]) -> T:
    """Return what ``read`` returns, which is called again if ``folder`` or one of its files changed while it ran.

    A new version takes the place of the old one in one step, but a reader opens one file after the other: it could
    read the old card and the new tensors, or take a folder for damaged that never was. ``parts`` are patterns of the
    names of the files that are read; other files may change. Raises :class:`UserError` if the folder never rests.
    """
    for _ in range(_TRIES):
        before = _version(folder, parts)
        try:
            result = read()
        except (UserError, FileNotFoundError):
            if _version(folder, parts) == before:
                raise
        else:
            if _version(folder, parts) == before:
                return result
            del result  # so that memory does not hold two versions
        time.sleep(_PAUSE)
    raise UserError(f"{folder} changes while it is read: wait until whatever writes there has ended")


def _version(folder: str | Path, parts: Collection[str]) -> list[tuple[str | int, ...]]:
    """The identity of a folder, and those of its files with their sizes and times; empty if it cannot be read."""
    try:
        about = os.stat(folder)
        plain = [part for part in parts if "/" not in part]
        files = []
        for name in sorted(os.listdir(folder)):
            if any(fnmatchcase(name, part) for part in plain):
                file = os.lstat(os.path.join(folder, name))
                # Without the time of the last change of state: a backup by hard links changes it, and nothing else.
                files.append((name, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns))
    except (OSError, ValueError):
        return []
    return [(about.st_dev, about.st_ino), *files]
