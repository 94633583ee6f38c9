"""Places that are written to: the path behind links, the hidden names beside it, and the kind of the place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from skillweave.errors import UserError

_LONGEST = 100
"""Most bytes of a name that a hidden name repeats. A file system allows 255 bytes in all, some only 143."""
_SHOWN = 100
_INSIDE = "skillweave"
"""Replaces the name of the place in hidden entries inside the place."""
LOST_AND_FOUND = "lost+found"
"""A file system's own folder, at the root of a mounted file system."""
LOCK_MARK = b'{"pid": '
"""The beginning of the text in a lock file. A lock that was just created is empty."""
_HIDDEN = re.compile(r"\.(?P<stem>.+)\.(?:(?P<kind>new|old|del|ready|in)-(?P<token>[0-9a-z_]{8})|lock)", re.DOTALL)
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|\d+|thread-self))/fd/(\d+)")
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


@dataclass(frozen=True)
class Place:
    """Where a file or folder is written. ``path`` is absolute, with links followed; ``shown`` is what the person named.

    ``inside`` is True if the folder itself cannot be renamed (it is a mount point, or its parent is not writable); then
    its contents are exchanged instead.
    """

    path: Path
    shown: Path
    inside: bool = False

    def hidden(self, kind: str, token: str) -> Path:
        """The hidden path of that kind: inside the place if only the place itself is writable, else beside it."""
        return self.within(kind, token) if self.inside else self.beside(kind, token)

    def beside(self, kind: str, token: str) -> Path:
        """The hidden path of that kind beside the place."""
        return self.path.parent / f".{short_name(self.path.name)}.{kind}-{token}"

    def within(self, kind: str, token: str) -> Path:
        """The hidden path of that kind inside the place."""
        return self.path / f".{_INSIDE}.{kind}-{token}"

    def kept(self, token: str) -> Path:
        """A path beside the place, not hidden, for a version that is kept for the person."""
        return self.path.parent / f"{short_name(self.path.name)}.kept-{token}"

    @property
    def lock(self) -> Path:
        """The lock file of the place."""
        return (
            self.path / f".{_INSIDE}.lock" if self.inside else self.path.parent / f".{short_name(self.path.name)}.lock"
        )


def place_of(path: str | Path) -> Place:
    """The place behind a path. Raises :class:`UserError` for a loop of links, and for a path that no system takes."""
    try:
        shown, real = Path(path), Path(os.path.realpath(path))
    except ValueError:
        raise UserError(
            f"{str(path)!a:.200} contains a character that no path can have: choose another place"
        ) from None
    try:
        is_loop = real.is_symlink()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(
            f"{str(path)[:_SHOWN]}... is too long for a path ({len(str(path)):,} characters): choose another place"
        ) from error
    if is_loop:
        raise UserError(f"{shown} is a link that leads back to itself: choose another place")
    return Place(
        real, shown, inside=real.is_dir() and (is_mount(real) or not os.access(real.parent, os.W_OK | os.X_OK))
    )


def new_token() -> str:
    """A token that no other write has."""
    return secrets.token_hex(4)


def leftovers(folder: Path, name: str) -> list[tuple[str, str, Path]]:
    """(kind, token, path) of the hidden entries in ``folder`` that belong to ``name``, sorted.

    An entry that a write inside another write left is garbage whatever its kind was, and so is its lock: both get the
    kind ``"new"``.
    """
    hidden = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _HIDDEN.fullmatch(entry.name)
            if match is None:
                continue
            if match["stem"] == name:
                if match["kind"] is not None:  # its holder removes the lock of the place
                    # A version is a folder. A link with such a name is not ours, so its target is never touched.
                    kind = match["kind"] if entry.is_dir(follow_symlinks=False) else "del"
                    hidden.append((kind, match["token"], Path(entry.path)))
            elif (outer := _outermost(match["stem"])) is not None and outer["stem"] == name:
                hidden.append(("new", outer["token"] or "", Path(entry.path)))
    return sorted(hidden)


def _outermost(name: str) -> re.Match[str] | None:
    """The outermost match of a hidden name that is made of hidden names; None for a name that is not hidden."""
    outermost = None
    while (match := _HIDDEN.fullmatch(name)) is not None:
        outermost, name = match, match["stem"]
    return outermost


def leftovers_beside(place: Place) -> list[tuple[str, str, Path]]:
    """The hidden entries of a place that are beside it."""
    return leftovers(place.path.parent, short_name(place.path.name))


def moved_aside(path: str | Path) -> str | None:
    """How a person gets back what is missing at ``path`` because a write was cut off; None if that is not the reason.

    It may be a folder above ``path`` that was moved aside.
    """
    try:
        real = Path(os.path.realpath(path))
    except ValueError:
        return None
    missing = [place for place in (real, *real.parents) if not os.path.lexists(place)]
    old = [aside for kind, _, aside in leftovers_beside(Place(missing[-1], real)) if kind == "old"] if missing else []
    return f"its files are in {old[-1]}; bring them back with: mv '{old[-1]}' '{missing[-1]}'" if old else None


def leftovers_within(place: Place) -> list[tuple[str, str, Path]]:
    """The hidden entries of a place that are inside it; an empty list if the place is not a folder.

    A version with the name ``ready`` or ``in`` that was not made here (its token is not its :func:`seal`) gets the kind
    ``"foreign"``: it came in an archive or was copied, and must not replace what is there.
    """
    entries = leftovers(place.path, _INSIDE) if place.path.is_dir() else []
    return [
        ("foreign" if kind in ("ready", "in") and token != seal(place.path, path) else kind, token, path)
        for kind, token, path in entries
    ]


def seal(place: Path, hidden: Path) -> str:
    """The token of a version that is ready inside a place: a digest of the inodes of both; "" if one does not exist.

    A rename keeps inodes. The author of an archive cannot know them: the unpacked files get new ones.
    """
    try:
        numbers = [os.lstat(path).st_ino for path in (place, hidden)]
    except FileNotFoundError:
        return ""
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:8]


def owner_of(hidden: Path) -> Path | None:
    """The place that a hidden entry or a lock belongs to, from its name; None if it is not one of ours."""
    match = _HIDDEN.fullmatch(hidden.name)
    if match is None:
        return None
    outer = _outermost(hidden.name)
    stem = outer["stem"] if outer else match["stem"]
    return hidden.parent if stem == _INSIDE else hidden.with_name(stem)


def short_name(name: str) -> str:
    """The name as hidden names repeat it. A long name is cut, and a digest distinguishes it from similar names."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST:
        return name
    # Case is ignored: on some file systems two spellings are one name, and must share one lock.
    key = hashlib.sha256(os.fsencode(name.casefold())).hexdigest()[:12]
    return f"{encoded[: _LONGEST - 20].decode(errors='ignore')}~{key}"


def is_mount(path: Path) -> bool:
    """Whether an absolute path is a mount point, also of a folder of the same file system (``mount --bind``)."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    return any(_unescaped(line.split(b" ")[4]) == os.fsencode(path) for line in lines if line.count(b" ") > 4)


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), field)


def stream_of(path: str | Path) -> int | None:
    """The open file descriptor that a path means (``/dev/stdout``, ``/dev/fd/63``), also behind links; else None."""
    path = os.path.abspath(path)
    for _ in range(40):
        if path in _STREAMS:
            return _STREAMS[path]
        if match := _DESCRIPTOR.fullmatch(path):
            return int(match[1])
        if not os.path.islink(path):
            return None
        path = os.path.abspath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return None


def is_occupied(path: Path) -> bool:
    """Whether the path is a file, or a folder with anything in it besides our hidden entries and ``lost+found``."""
    if not path.is_dir():
        return os.path.lexists(path) and not path.is_symlink()
    return bool(_visible(path))


def check_parts(folder: Path, parts: Collection[str], kind: str) -> None:
    """Raise :class:`UserError` if a folder that a new ``kind`` replaces has entries that are not among ``parts``.

    ``parts`` are paths below the folder of all files that a ``kind`` may have; ``*`` stands for any characters. Locks
    and half-written files of ours are no one's work: a command that was killed leaves them.
    """
    root = place_of(folder).path
    names = files_below(root)
    others = [name for name in names if not any(fnmatchcase(name, part) for part in parts)]
    if others:
        raise UserError(
            f"{folder} holds '{others[0]}', which is no part of a {kind} and would be deleted: move it, or choose "
            "another place"
        )


def files_below(folder: Path) -> list[str]:
    """The paths below a folder of all files in it, but for our locks, our half-written files and ``lost+found``.

    Links and empty folders count as files. A folder that cannot be listed stands for its files, as ``NAME/``. There are
    none if ``folder`` is no folder; if it cannot be listed itself, an ``OSError`` is raised.
    """
    try:
        tops = sorted(_visible(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for top in tops for name in _below(folder / top, top) if not _is_garbage(folder, name)]


def _is_garbage(folder: Path, name: str) -> bool:
    """Whether a path below a folder is a lock of ours, or in a version that is not finished."""
    kinds = [match["kind"] for part in name.split("/") if (match := _HIDDEN.fullmatch(part))]
    return "new" in kinds or "del" in kinds or (None in kinds and _is_lock(folder / name))


def _is_lock(path: Path) -> bool:
    """Whether a file is a lock of ours, which is empty when it was just made, and not only named like one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode) and path.read_bytes()[: len(LOCK_MARK)] in (b"", LOCK_MARK)
    except OSError:
        return False


def _below(path: Path, name: str) -> Iterator[str]:
    """The paths of the files at ``path`` and below it, which is called ``name`` (see :func:`files_below`)."""
    try:
        inside = sorted(os.listdir(path)) if path.is_dir() and not path.is_symlink() else []
    except FileNotFoundError:  # another process has removed it
        return
    except OSError:
        yield f"{name}/"
        return
    if not inside:
        yield name
    for entry in inside:
        yield from _below(path / entry, f"{name}/{entry}")


def _visible(folder: Path) -> set[str]:
    """The names in a folder, without our hidden entries and ``lost+found``."""
    ours = f".{_INSIDE}."
    return {name for name in os.listdir(folder) if name != LOST_AND_FOUND and not name.startswith(ours)}


def is_special(path: str | Path) -> bool:
    """Whether the path is something other than a file or a folder: a device, a pipe or a socket."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


_PRIVATE: dict[str, Path] = {}
"""Folder that this process is writing under a temporary name -> its path as the person knows it."""


@contextlib.contextmanager
def private(temporary: Path, shown: Path) -> Iterator[None]:
    """A context in which files in ``temporary`` are written directly: the folder is put in place or removed as one."""
    _PRIVATE[str(temporary)] = shown
    try:
        yield
    finally:
        _PRIVATE.pop(str(temporary), None)


def is_private(path: Path) -> bool:
    """Whether a path is, or is inside, a folder that this process is writing under a temporary name."""
    return _private_root(path) is not None


def shown_of(path: Path) -> Path:
    """The path as the person knows it: the temporary name of a folder that is being written is replaced."""
    root = _private_root(path)
    return path if root is None else shown_of(_PRIVATE[str(root)] / path.relative_to(root))


def _private_root(path: Path) -> Path | None:
    return next((folder for folder in (path, *path.parents) if str(folder) in _PRIVATE), None)
