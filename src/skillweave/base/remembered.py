"""Remember the fingerprint of a folder between runs, for as long as its files are certainly the same.

Size and modification time are not enough: all fine-tunes of a base have one size, and archives, container layers and
``cp -p`` give old times to new files. A note in the cache therefore also holds each file's inode, device and change
time (which no program can set), and a hash of its header and of pieces spread over its data. In doubt the folder is
hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import transformers

from skillweave.artefact import write_json
from skillweave.base.folder import CONFIG, ModelFolder
from skillweave.errors import UserError
from skillweave.files.cache import cache_folder
from skillweave.files.hashes import digest
from skillweave.files.read import read_json

_SETTLED = 2.0
"""Seconds. A younger file could be written again within one tick of its time stamp."""
_PIECES, _PIECE = 64, 4096
_HEADER = 2**24
_VERSION = 2
_EXACT_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "overlay", "nfs", "nfs4"}
"""File systems of Linux that record the time of every change of a file. Those in memory (tmpfs) do not record writes
through a mapping, and network and FUSE file systems may invent the time."""

State = list[list[Any]]


def state_of(files: ModelFolder) -> State:
    """The state of a folder's files, which changes with any file, with SkillWeave's reader and with transformers."""
    return [[_VERSION, transformers.__version__], *(file_state(file) for file in (files.path / CONFIG, *files.weights))]


def file_state(file: Path) -> list[Any]:
    """The state of a file: path, size, times, inode, device and a hash of pieces of its data."""
    with open(file, "rb") as handle:
        # Data that was written through a mapping and is not on the disk yet gets its time stamp now.
        with contextlib.suppress(OSError):
            os.fsync(handle.fileno())
        about = os.fstat(handle.fileno())
        pieces = _pieces(handle, about.st_size)
    numbers = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev]
    return [str(file.resolve()), *numbers, pieces]


def recall(folder: Path, state: State) -> str | None:
    """The fingerprint that was kept for exactly this state; None if there is none, or if its note is damaged."""
    with contextlib.suppress(UserError, OSError):
        note = read_json(_place(folder))
        if isinstance(note, dict) and note.get("files") == state:
            fingerprint = note.get("fingerprint")
            intact = note.get("check") == _check(state, fingerprint)
            if intact and isinstance(fingerprint, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", fingerprint):
                return fingerprint
    return None


def keep(files: ModelFolder, state: State, fingerprint: str) -> None:
    """Write the note, unless a file is so young, or on such a file system, that it could change unnoticed."""
    newest = max(max(row[2], row[3]) for row in state[1:])
    if time.time() - newest / 1e9 < _SETTLED or state_of(files) != state or not _records_every_change(state):
        return
    # If the cache cannot be written, the next run takes longer, and nothing else happens.
    with contextlib.suppress(UserError, OSError):
        write_json(
            _place(files.path), {"fingerprint": fingerprint, "files": state, "check": _check(state, fingerprint)}
        )


def _place(folder: Path) -> Path:
    return cache_folder() / "fingerprints" / f"{digest([_VERSION, str(folder.resolve())])}.json"


def _check(state: State, fingerprint: Any) -> str:
    return digest([state, fingerprint])


def _pieces(handle: Any, size: int) -> str:
    """A hash of the first bytes (a safetensors header) and of pieces at equal distances up to the end."""
    sha = hashlib.sha256()
    head = handle.read(8)
    sha.update(head + handle.read(min(int.from_bytes(head, "little"), _HEADER)))
    for at in range(_PIECES):
        handle.seek(max(size - _PIECE, 0) * at // (_PIECES - 1))
        sha.update(handle.read(_PIECE))
    return sha.hexdigest()


def _records_every_change(state: State) -> bool:
    """Whether the file systems of all files record every change of a file."""
    if sys.platform == "darwin":
        return True
    if not sys.platform.startswith("linux"):
        return False
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    kinds = {}
    for line in mounts:
        left, _, right = line.partition(" - ")
        if len(left.split()) > 2 and right:
            kinds[left.split()[2]] = right.split()[0]
    return all(_kind(kinds, row[5]) in _EXACT_FILE_SYSTEMS for row in state[1:])


def _kind(kinds: dict[str, str], device: int) -> str | None:
    """The file system of a device number; None if unknown (btrfs gives its subvolumes numbers that no mount has)."""
    return kinds.get(f"{os.major(device)}:{os.minor(device)}")
