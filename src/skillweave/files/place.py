"""Where something is written: the path behind links, the hidden names beside it, and what kind of place it is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skillweave.errors import UserError

_LONGEST = 100
"""Bytes of a name that a hidden name repeats: a file system allows 255, and some allow 143."""
_INSIDE = "skillweave"
"""Stands for the name in hidden entries inside the place itself."""
LOST_AND_FOUND = "lost+found"
"""A file system's own folder, at the top of one that is mounted."""
_HIDDEN = re.compile(r"\.(?P<stem>.+)\.(?:(?P<kind>new|old|del|ready|in)-(?P<token>[0-9a-z_]{8})|lock)", re.DOTALL)
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|\d+|thread-self))/fd/(\d+)")
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


@dataclass(frozen=True)
class Place:
    """Where a file or folder is to lie. ``path`` is absolute and follows links; ``shown`` is what the person named.

    ``inside``: the folder itself cannot be renamed (it is a mount point, or its parent may not be written), so what it
    holds is exchanged instead.
    """

    path: Path
    shown: Path
    inside: bool = False

    def hidden(self, kind: str, token: str) -> Path:
        """The hidden path of that kind: inside the place where only that can be written, else beside it."""
        return self.within(kind, token) if self.inside else self.beside(kind, token)

    def beside(self, kind: str, token: str) -> Path:
        """The hidden path of that kind beside the place."""
        return self.path.parent / f".{_stem(self.path.name)}.{kind}-{token}"

    def within(self, kind: str, token: str) -> Path:
        """The hidden path of that kind inside the place."""
        return self.path / f".{_INSIDE}.{kind}-{token}"

    @property
    def lock(self) -> Path:
        """The lock file of the place."""
        return self.path / f".{_INSIDE}.lock" if self.inside else self.path.parent / f".{_stem(self.path.name)}.lock"


def place_of(path: str | Path) -> Place:
    """The place behind a path. A loop of links, and a path with a NUL, is a :class:`UserError`."""
    try:
        shown, real = Path(path), Path(os.path.realpath(path))
    except ValueError:
        raise UserError(f"{str(path)!a:.200} holds a character that no path can hold: choose another place") from None
    if real.is_symlink():
        raise UserError(f"{shown} is a link that leads back to itself: choose another place")
    return Place(
        real, shown, inside=real.is_dir() and (is_mount(real) or not os.access(real.parent, os.W_OK | os.X_OK))
    )


def new_token() -> str:
    """A name for one write that no other write has."""
    return secrets.token_hex(4)


def leftovers(folder: Path, name: str) -> list[tuple[str, str, Path]]:
    """(kind, token, path) of the hidden entries in ``folder`` that belong to ``name``, in the order of their names.

    What a write within a write left is garbage whatever its kind was, and has the kind ``"new"``; so has its lock.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _HIDDEN.fullmatch(entry.name)
            if match is None:
                continue
            if match["stem"] == name:
                if match["kind"] is not None:  # the lock of the place is removed by whoever holds it
                    # A version is a folder. A link under such a name is not ours: what it leads to is never touched.
                    kind = match["kind"] if entry.is_dir(follow_symlinks=False) else "del"
                    found.append((kind, match["token"], Path(entry.path)))
            elif (outer := _outermost(match["stem"])) is not None and outer["stem"] == name:
                found.append(("new", outer["token"] or "", Path(entry.path)))
    return sorted(found)


def _outermost(name: str) -> re.Match[str] | None:
    """How a hidden name within hidden names begins; None for a name that is not hidden."""
    found = None
    while (match := _HIDDEN.fullmatch(name)) is not None:
        found, name = match, match["stem"]
    return found


def leftovers_beside(place: Place) -> list[tuple[str, str, Path]]:
    """The hidden entries of a place that lie beside it."""
    return leftovers(place.path.parent, _stem(place.path.name))


def leftovers_within(place: Place) -> list[tuple[str, str, Path]]:
    """The hidden entries of a place that lie inside it; none where it is no folder.

    A version under the name ``ready`` or ``in`` that was not made here (its token is not its :func:`seal`) has the kind
    ``"foreign"``: it came in an archive or was copied, and must not take the place of what lies there.
    """
    found = leftovers(place.path, _INSIDE) if place.path.is_dir() else []
    return [
        ("foreign" if kind in ("ready", "in") and token != seal(place.path, path) else kind, token, path)
        for kind, token, path in found
    ]


def seal(place: Path, hidden: Path) -> str:
    """The token of a version that lies ready inside a place: a digest of the inodes of both.

    A rename keeps it. Who packs an archive cannot know which inodes it will be unpacked to. Empty where one is gone.
    """
    try:
        numbers = [os.lstat(path).st_ino for path in (place, hidden)]
    except FileNotFoundError:
        return ""
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:8]


def owner_of(hidden: Path) -> Path | None:
    """The place that a hidden entry or a lock belongs to, by its name; None where it is nothing of ours."""
    match = _HIDDEN.fullmatch(hidden.name)
    if match is None:
        return None
    outer = _outermost(hidden.name)
    stem = outer["stem"] if outer else match["stem"]
    return hidden.parent if stem == _INSIDE else hidden.with_name(stem)


def _stem(name: str) -> str:
    """The name as hidden names repeat it: a long one is cut, and a digest keeps it apart from its like."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST:
        return name
    # Without regard to case: on some file systems two spellings are one name, and must share one lock.
    key = hashlib.sha256(os.fsencode(name.casefold())).hexdigest()[:12]
    return f"{encoded[: _LONGEST - 20].decode(errors='ignore')}~{key}"


def is_mount(path: Path) -> bool:
    """Whether something is mounted at an absolute path, also a folder of the same file system (``mount --bind``)."""
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
    """The open descriptor that a path stands for (``/dev/stdout``, ``/dev/fd/63``), also behind links; else None."""
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
    """Whether a file lies at the path, or a folder with anything in it that is not ours or the file system's own."""
    if not path.is_dir():
        return os.path.lexists(path) and not path.is_symlink()
    ours = f".{_INSIDE}."
    return any(name != LOST_AND_FOUND and not name.startswith(ours) for name in os.listdir(path))


def is_special(path: str | Path) -> bool:
    """Whether something other than a file or a folder lies at the path: a device, a pipe or a socket."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


_PRIVATE: dict[str, Path] = {}
"""Folders that this process is writing under a temporary name -> what the person calls them."""


@contextlib.contextmanager
def private(temporary: Path, shown: Path) -> Iterator[None]:
    """Within, writes into ``temporary`` need no care of their own: all of it is put in place or removed as one."""
    _PRIVATE[str(temporary)] = shown
    try:
        yield
    finally:
        _PRIVATE.pop(str(temporary), None)


def is_private(path: Path) -> bool:
    """Whether a path lies in, or is, a folder that this process is writing under a temporary name."""
    return _private_root(path) is not None


def shown_of(path: Path) -> Path:
    """The path as the person knows it, without the temporary name of a folder that is being written."""
    root = _private_root(path)
    return path if root is None else shown_of(_PRIVATE[str(root)] / path.relative_to(root))


def _private_root(path: Path) -> Path | None:
    return next((folder for folder in (path, *path.parents) if str(folder) in _PRIVATE), None)
