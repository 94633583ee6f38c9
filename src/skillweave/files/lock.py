"""One writer for each place: a lock that the system releases when the process ends, however it ends.

The package filelock is not used: it leaves its lock files in place, and does not say who holds them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillweave.errors import UserError
from skillweave.files.disk import disk_errors, make_folders, no_place
from skillweave.files.place import LOCK_MARK, Place, files_below, place_of
from skillweave.progress import console, say_once
from skillweave.terminal import one_line

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Error numbers of file systems that have no locks."""
_PAUSE = 0.05
"""Seconds between two tries to get a lock that another process holds."""


@dataclass
class HeldLock:
    """A lock that this process holds. ``sure`` is False if the file system has no locks."""

    path: Path
    descriptor: int
    thread: int
    sure: bool
    made: list[Path]
    """Folders that were created for the lock; they are removed with it if they are still empty."""
    known: set[str]
    """The files below the place when it was claimed, and those that this process has put there since."""
    count: int = 1


_HELD_LOCKS: dict[str, HeldLock] = {}
_GUARD = threading.RLock()  # a claim may be released by the garbage collector while this thread takes another


def _forget_in_child() -> None:
    """Drop all locks in a forked process: otherwise a lock would outlive a killed process in one of its workers."""
    global _GUARD
    _GUARD = threading.RLock()
    for lock in _HELD_LOCKS.values():
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)  # closed, not unlocked: the lock is still the parent's
    _HELD_LOCKS.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@dataclass
class Claim:
    """The right to write a place, from :func:`take` until :meth:`release`."""

    place: Place
    _held: HeldLock | None = field(repr=False)

    @property
    def sure(self) -> bool:
        """Whether certainly no other process writes there; False if the file system has no locks."""
        return self._held is not None and self._held.sure

    def strangers(self, version: Path) -> list[str]:
        """The files in ``version``, which is or was at the place, that came there after the claim, not from here."""
        known = self._held.known if self._held else set()
        unlisted = tuple(name for name in known if name.endswith("/"))  # what was in them is known, too
        names = {name.rstrip("/") for name in known}
        others = [name for name in files_below(version) if not name.startswith(unlisted)]
        # A folder that lost its last file, or cannot be listed now, is as well known as the files in it were.
        return sorted(
            name
            for name in others
            if (bare := name.rstrip("/")) not in names and not any(one.startswith(f"{bare}/") for one in names)
        )

    def know(self) -> None:
        """Note that all files that are at the place now are from this process."""
        if self._held is not None:
            self._held.known.update(files_below(self.place.path))

    def release(self) -> None:
        """Release the place; a second call does nothing."""
        lock, self._held = self._held, None
        if lock is None:
            return
        with _GUARD:
            lock.count -= 1
            if lock.count or _HELD_LOCKS.get(str(lock.path)) is not lock:
                return
            del _HELD_LOCKS[str(lock.path)]
        _remove(lock)


@contextlib.contextmanager
def claim(path: str | Path, *, waiting: str | None = None, patience: float = 0) -> Iterator[Claim]:
    """A context in which no other process and no other thread writes ``path`` (see :func:`take`)."""
    taken = take(place_of(path), waiting=waiting, patience=patience)
    try:
        yield taken
    finally:
        taken.release()


def take(place: Place, *, waiting: str | None = None, patience: float = 0) -> Claim:
    """Claim a place for this thread, which may claim it several times.

    While another process or thread holds the place:

    - Without ``waiting``, a :class:`UserError` names the holder after ``patience`` seconds.
    - With ``waiting``, that message is printed, and the wait has no limit.

    A process that was killed holds nothing.
    """
    ends, announced = time.monotonic() + patience, False
    while True:
        with _GUARD:
            lock = _HELD_LOCKS.get(str(place.lock))
            if lock is not None and lock.thread == threading.get_ident():
                lock.count += 1
                return Claim(place, lock)
            if lock is None:
                with disk_errors(place.shown):
                    result = _try(place)
                if isinstance(result, HeldLock):
                    _HELD_LOCKS[str(place.lock)] = result
                    return Claim(place, result)
                holder = result
            else:
                holder = f"another thread of this process (pid {os.getpid()})"
        if waiting is None and time.monotonic() >= ends:
            raise UserError(
                f"{place.shown} is being written by {holder}: wait until it has ended, or choose another place"
            )
        if waiting is not None and not announced:
            console.print(f"{waiting} ({holder})", markup=False, soft_wrap=True)
            announced = True
        time.sleep(_PAUSE)


def _try(place: Place) -> HeldLock | str:
    """Try to get the lock of a place; return the lock, or a description of its holder."""
    made: list[Path] = []
    while True:
        try:
            made += make_folders(place.lock.parent)
            descriptor = _open(place.lock)
        except FileNotFoundError:
            if place.lock.parent.is_dir():
                raise no_place(place.lock.parent) from None
            continue  # the folder was removed by another process that had made it
        try:
            sure = _lock(descriptor)
            if sure is None or (not sure and _lives(_read(descriptor))):
                holder = _who(_read(descriptor))
                os.close(descriptor)
                return holder
            if not _is_at(descriptor, place.lock):  # its holder removed it after we opened it
                os.close(descriptor)
                continue
            if not sure:
                say_once(f"the file system of {place.shown} has no locks: make sure that only one process writes there")
            _write_holder(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        lock = HeldLock(place.lock, descriptor, threading.get_ident(), sure, made, set())
        try:
            lock.known.update(files_below(place.path))
        except PermissionError as error:
            _remove(lock)
            raise UserError(
                f"{place.shown} cannot be listed, so its files might be lost: give yourself the permission to read it, "
                "or choose another place"
            ) from error
        except BaseException:
            _remove(lock)
            raise
        return lock


def _remove(lock: HeldLock) -> None:
    """Remove the file of a lock, release it, and remove the folders that were created for it."""
    # Removed while it is locked: a process that opened it before, and gets the lock now, sees that it is gone.
    for _ in range(2):  # a network file system may once report that the file has changed
        with contextlib.suppress(OSError):
            if _is_at(lock.descriptor, lock.path):
                os.unlink(lock.path)
    with contextlib.suppress(OSError):
        os.close(lock.descriptor)
    for folder in reversed(lock.made):
        try:
            os.rmdir(folder)
        except OSError:
            break


def _open(path: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        # Another user's lock can be waited for, if not written into.
        if not os.path.lexists(path):
            raise
        descriptor = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise UserError(f"{path} is not a file, but the lock of this program belongs there: remove it") from error
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        why = "is not a file"
    elif state.st_nlink > 1:
        why = "is another name of some other file"  # a hard link: to write the lock would overwrite that file
    elif state.st_size and not os.pread(descriptor, len(LOCK_MARK), 0).startswith(LOCK_MARK):
        why = "is a file of another program"
    else:
        return descriptor
    os.close(descriptor)
    raise UserError(f"{path} {why}, but the lock of this program belongs there: remove it or choose another place")


def _lock(descriptor: int) -> bool | None:
    """Lock an open file: True if it worked, None if another process holds it, False if there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            return None
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that is at the path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    text = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    # This is only a message for others, so a full disk does not matter here.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _read(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    pid, host, since = (one_line(holder.get(key), 80) for key in ("pid", "host", "since"))
    return f"another process (pid {pid} on {host}, since {since})"


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process that a lock file names runs on this machine, for file systems that have no locks."""
    pid = holder.get("pid")
    if holder.get("host") != platform.node() or not isinstance(pid, int) or pid in (0, os.getpid()) or pid < 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
