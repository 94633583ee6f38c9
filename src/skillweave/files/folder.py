"""The one reader of an artefact's folder: what may lie there, and that it is what the card says.

A delta, a pack, a router and a weave are folders that people send each other. Their author may be a stranger, so every
name is checked before it becomes a path, and every file before it is opened:

- a name is plain: no absolute path, no ``..``, no separator but ``/``, no control character, bounded in length;
- a file is a regular file inside the folder. A link, a pipe, a device and a folder in its place are refused. One kind
  of link is followed: where the folder lies in the cache of the Hugging Face hub
  (``models--NAME/snapshots/COMMIT``), files may be links into ``models--NAME/blobs``, as the hub's client lays them;
- the SHA-256 of every file is the one that the card names;
- what the card does not name is never opened and never copied.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.files.read import read_bytes

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_DEEPEST = 4  # packs/NAME/files/...: no artefact has folders deeper in each other
_HUB_FOLDERS = ("models--", "datasets--", "spaces--")
_MOST_SHOWN = 3


def check_plain_name(name: str) -> str:
    """``name``, where it is a plain name of a file below a folder; else ValueError."""
    parts = name.split("/")
    if len(parts) > _DEEPEST or not all(_PART.fullmatch(part) and ".." not in part for part in parts):
        raise ValueError(
            f"{name[:100]!a} is no plain file name (letters, digits, '.', '_', '-', '+'; no link, no '..', no absolute "
            f"path)"
        )
    return name


def _check_apart(files: dict[str, str]) -> dict[str, str]:
    """``files``, where no two names are one on a file system that ignores case."""
    seen: dict[str, str] = {}
    for name in files:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ValueError(f"'{other}' and '{name}' differ in case alone: many file systems hold one of them only")
    return files


FileName = Annotated[str, AfterValidator(check_plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileHashes = Annotated[dict[FileName, Sha256], AfterValidator(_check_apart)]
"""The ``files`` of a card: name -> SHA-256 in hex."""
FileMeanings = Annotated[dict[FileName, Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]], AfterValidator(_check_apart)]
"""The ``from_base`` of a card: name -> digest of what the base's file means."""


class Folder:
    """The folder of one artefact.

    ``card`` is the file in it that names the others; ``fix`` says what a person can do where something is wrong
    ("Copy or make the pack again.").
    """

    def __init__(self, path: str | Path, card: str, fix: str) -> None:
        self.path = Path(path)
        self.card = card
        self.fix = fix

    def file(self, name: str) -> Path:
        """The path of a file, checked to be a regular file inside the folder; else :class:`UserError`."""
        try:
            parts = check_plain_name(name).split("/")
        except ValueError as error:
            raise UserError(f"{self.path}: {error}. {self.fix}") from error
        place = self.path
        for part in parts[:-1]:
            place = place / part
            if not stat.S_ISDIR(self._mode(place)):
                raise UserError(f"{place} is no folder of its own (a link, or a file): {self.fix}")
        place = place / parts[-1]
        check_regular(place, self.path, self._mode(place), self.fix)
        return place

    def verified(self, files: Mapping[str, str]) -> dict[str, Path]:
        """The path of every file in ``files`` (name -> SHA-256), each checked against its hash."""
        return {name: self.matches(name, expected) for name, expected in files.items()}

    def matches(self, name: str, expected: str | None) -> Path:
        """The path of a file whose SHA-256 is ``expected``; else :class:`UserError`."""
        path = self.file(name)
        self._check_hash(path, sha256_file(path), expected)
        return path

    def read(self, name: str, expected: str) -> bytes:
        """The bytes of a file whose SHA-256 is ``expected``, read once; else :class:`UserError`."""
        path = self.file(name)
        data = read_bytes(path)
        self._check_hash(path, hashlib.sha256(data).hexdigest(), expected)
        return data

    def _check_hash(self, path: Path, found: str, expected: str | None) -> None:
        if found != expected:
            raise UserError(
                f"{path} is damaged: its SHA-256 is {found[:12]}..., and {self.card} names "
                f"{f'{expected[:12]}...' if expected else 'none.'} {self.fix}"
            )

    def copy(self, files: Mapping[str, str], to: Path) -> None:
        """Copy the card and the files that it names into ``to``, byte for byte, and nothing else.

        What was copied is checked against ``files`` (name -> SHA-256), so that a file that changes meanwhile is told.
        """
        for name in (self.card, *files):
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.file(name), target)
        Folder(to, self.card, self.fix).verified(files)

    def unnamed(self, files: Collection[str]) -> list[str]:
        """What lies in the folder and is neither the card nor among ``files``, sorted, as names to show.

        A subfolder of which nothing is named counts as one.
        """
        named = {self.card, *files}
        folders = {name[: name.rindex("/")] for name in named if "/" in name}
        found = []
        for inside in ("", *sorted(folders)):
            for entry in os.scandir(self.path / inside):
                name = f"{inside}/{entry.name}" if inside else entry.name
                if name not in named and not any(f"{folder}/".startswith(f"{name}/") for folder in folders):
                    found.append(name)
        return sorted(found)

    def _mode(self, place: Path) -> int:
        try:
            return os.lstat(place).st_mode
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise UserError(f"{place} is missing: the folder is incomplete. {self.fix}") from None
            raise UserError(f"{place} could not be read ({error.strerror}): change its permissions") from error


def check_regular(place: Path, root: Path, mode: int | None = None, fix: str = "Copy the folder again.") -> None:
    """Raise :class:`UserError` unless ``place`` is a regular file of the folder ``root``.

    ``mode`` is that of ``os.lstat``, where it is known. A link passes only where the hub's client has laid it: from a
    snapshot to a regular file in ``blobs`` of the same repository.
    """
    mode = os.lstat(place).st_mode if mode is None else mode
    if stat.S_ISREG(mode):
        return
    if not stat.S_ISLNK(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise UserError(f"{place} is {kind}, where a regular file is expected. {fix}")
    target = Path(os.path.realpath(place))
    blobs = _blobs(root)
    if blobs is None or target.parent != blobs or not target.is_file():
        raise UserError(
            f"{place} is a link. What it points to may lie outside the folder, so it is not followed: put a copy of "
            f"the file itself there. {fix}"
        )


def _blobs(root: Path) -> Path | None:
    """The folder ``blobs`` of the hub's cache in which ``root`` lies, or None."""
    real = Path(os.path.realpath(root))
    for snapshots in real.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith(_HUB_FOLDERS):
            blobs = snapshots.parent / "blobs"
            return None if blobs.is_symlink() else blobs  # the hub's client lays no link there
    return None


def named_shortly(names: list[str]) -> str:
    """The first names of a list, and how many more there are: "'a', 'b', 'c' and 4 more"."""
    shown = ", ".join(ascii(name[:60]) for name in names[:_MOST_SHOWN])
    return f"{shown} and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else shown
