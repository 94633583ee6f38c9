"""The only reader of an artefact's folder: it checks what the folder contains against the card.

A delta, a pack, a router and a weave are folders that people send each other. Their author may be a stranger, so every
name is checked before it becomes a path, and every file before it is opened:

- A name is plain: no absolute path, no ``..``, no separator but ``/``, no control character, bounded in length.
- A file is a regular file inside the folder. Links, pipes, devices and folders in its place are refused. One kind of
  link is followed: in the cache of the Hugging Face hub (``models--NAME/snapshots/COMMIT``), files may be links into
  ``models--NAME/blobs``, as the hub's client creates them.
- The SHA-256 of every file is the one that the card names.
- Files that the card does not name are never opened and never copied.
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
from skillweave.files.read import LARGEST_TEXT, read_bytes

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_DEEPEST = 4  # packs/NAME/files/FILE: no artefact has deeper folders
_HUB_FOLDERS = ("models--", "datasets--", "spaces--")
_MOST_SHOWN = 3


def check_plain_name(name: str) -> str:
    """Return ``name`` if it is a plain file name below a folder. Raises ``ValueError`` if not."""
    parts = name.split("/")
    if len(parts) > _DEEPEST or not all(_PART.fullmatch(part) and ".." not in part for part in parts):
        raise ValueError(
            f"{name[:100]!a} is not a plain file name (letters, digits, '.', '_', '-', '+'; no link, no '..', no "
            f"absolute path)"
        )
    return name


def _check_apart(files: dict[str, str]) -> dict[str, str]:
    """Return ``files`` if all names stay different on a file system that ignores case. Raises ``ValueError`` if not."""
    seen: dict[str, str] = {}
    for name in files:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ValueError(f"'{other}' and '{name}' differ in case only: many file systems can hold only one of them")
    return files


FileName = Annotated[str, AfterValidator(check_plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileHashes = Annotated[dict[FileName, Sha256], AfterValidator(_check_apart)]
"""The ``files`` of a card: name -> SHA-256 in hex."""
FileMeanings = Annotated[dict[FileName, Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]], AfterValidator(_check_apart)]
"""The ``from_base`` of a card: name -> digest of what the base's file means."""


class Folder:
    """The folder of one artefact.

    ``card`` is the file in it that names the other files. ``fix`` tells a person what to do if something is wrong
    ("Copy or make the pack again."); it ends every error message.
    """

    def __init__(self, path: str | Path, card: str, fix: str) -> None:
        self.path = Path(path)
        self.card = card
        self.fix = fix

    def file(self, name: str) -> Path:
        """The path of a regular file inside the folder. Raises :class:`UserError` for anything else."""
        try:
            parts = check_plain_name(name).split("/")
        except ValueError as error:
            raise UserError(f"{self.path}: {error}. {self.fix}") from error
        place = self.path
        for part in parts[:-1]:
            place = place / part
            if not stat.S_ISDIR(self._mode(place)):
                raise UserError(f"{place} is not a folder of its own (a link, or a file): {self.fix}")
        place = place / parts[-1]
        check_regular(place, self.path, self._mode(place), self.fix)
        return place

    def verified(self, files: Mapping[str, str]) -> dict[str, Path]:
        """The path of every file in ``files`` (name -> SHA-256), each checked against its hash."""
        return {name: self.matches(name, expected) for name, expected in files.items()}

    def matches(self, name: str, expected: str | None) -> Path:
        """The path of a file, checked to have the SHA-256 ``expected``. Raises :class:`UserError` if it differs."""
        path = self.file(name)
        self._check_hash(path, sha256_file(path), expected)
        return path

    def read(self, name: str, expected: str | None, *, largest: int = LARGEST_TEXT) -> bytes:
        """The bytes of a file, read once and checked to have the SHA-256 ``expected``. Raises :class:`UserError`."""
        path = self.file(name)
        data = read_bytes(path, largest=largest)
        self._check_hash(path, hashlib.sha256(data).hexdigest(), expected)
        return data

    def _check_hash(self, path: Path, actual: str, expected: str | None) -> None:
        if actual != expected:
            raise UserError(
                f"{path} is damaged: its SHA-256 is {actual[:12]}..., and {self.card} names "
                f"{f'{expected[:12]}...' if expected else 'none.'} {self.fix}"
            )

    def copy(self, files: Mapping[str, str], to: Path) -> None:
        """Copy the card and the ``files`` (name -> SHA-256) into ``to``, byte for byte, and nothing else.

        The copies are checked against the hashes, so a file that changes meanwhile raises :class:`UserError`.
        """
        for name in (self.card, *files):
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.file(name), target)
        Folder(to, self.card, self.fix).verified(files)

    def unnamed(self, files: Collection[str]) -> list[str]:
        """The names in the folder that are neither the card nor among ``files``, sorted.

        A subfolder that contains no named file counts as one name.
        """
        named = {self.card, *files}
        folders = {name[: name.rindex("/")] for name in named if "/" in name}
        names = []
        for inside in ("", *sorted(folders)):
            for entry in os.scandir(self.path / inside):
                name = f"{inside}/{entry.name}" if inside else entry.name
                if name not in named and not any(f"{folder}/".startswith(f"{name}/") for folder in folders):
                    names.append(name)
        return sorted(names)

    def _mode(self, place: Path) -> int:
        try:
            return os.lstat(place).st_mode
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise UserError(f"{place} is missing: the folder is incomplete. {self.fix}") from None
            raise UserError(f"{place} could not be read ({error.strerror}): change its permissions") from error


def check_regular(place: Path, root: Path, mode: int | None = None, fix: str = "Copy the folder again.") -> None:
    """Raise :class:`UserError` unless ``place`` is a regular file of the folder ``root``.

    ``mode`` is the one of ``os.lstat``, if it is known. A link is accepted only if the hub's client created it, from a
    snapshot to a regular file in ``blobs`` of the same repository.
    """
    mode = os.lstat(place).st_mode if mode is None else mode
    if stat.S_ISREG(mode):
        return
    if not stat.S_ISLNK(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise UserError(f"{place} is {kind}, but a regular file is expected. {fix}")
    target = Path(os.path.realpath(place))
    blobs = _blobs(root)
    if blobs is None or target.parent != blobs or not target.is_file():
        raise UserError(
            f"{place} is a link. Its target may be outside the folder, so it is not followed: put a copy of the file "
            f"itself there. {fix}"
        )


def _blobs(root: Path) -> Path | None:
    """The folder ``blobs`` of the hub's cache that contains ``root``, or None."""
    real = Path(os.path.realpath(root))
    for snapshots in real.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith(_HUB_FOLDERS):
            blobs = snapshots.parent / "blobs"
            return None if blobs.is_symlink() else blobs  # the hub's client creates no link there
    return None


def named_shortly(names: list[str]) -> str:
    """The first names of a list and the number of the others: "'a', 'b', 'c' and 4 more"."""
    shown = ", ".join(ascii(name[:60]) for name in names[:_MOST_SHOWN])
    return f"{shown} and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else shown
