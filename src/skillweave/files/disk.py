"""Disk operations for safe writing: sync, exchange two folders in one step, remove; and disk errors as sentences."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from skillweave.errors import UserError
from skillweave.files.place import shown_of
from skillweave.units import human_bytes

_FULL = 2**20
"""A disk with fewer free bytes counts as full. When torch cannot write a checkpoint, its error does not say so."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EROFS, errno.EPERM}
_BROKEN = {
    errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.EUCLEAN, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOLCK, errno.EBUSY, errno.EXDEV, errno.EINTR,
    errno.ENOTCONN,
}  # fmt: skip
"""Errors of the disk or the system that the program cannot avoid."""
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS, errno.EACCES}
"""Error numbers of file systems that cannot sync a folder."""

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Error numbers of systems and file systems that do not know a flag of renameat2."""


class Unsupported(Exception):
    """The system or the file system cannot rename in this way."""


@contextlib.contextmanager
def disk_errors(path: Path, instead: str = "choose another folder") -> Iterator[None]:
    """Turn disk errors (full, read-only, broken) into a :class:`UserError` that names ``path``.

    ``instead`` says what a person can do who cannot free space on the disk.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        code, shown = _code(error), shown_of(path)
        if code in _NO_ROOM or "No space left" in str(error) or (code is None and _is_full(path)):
            why = {errno.EDQUOT: "the quota of this user is used up", errno.EFBIG: "the file is too large for the disk"}
            raise UserError(
                f"{why.get(code or 0, 'no space left on the disk')} while writing {shown}; "
                f"nothing was replaced. Free some space or {instead}."
            ) from error
        if code in _NOT_ALLOWED:
            raise UserError(f"no permission to write {shown}: {error}. Choose a folder you may write to.") from error
        if code in _BROKEN:
            raise UserError(
                f"could not write {shown}: {error}; nothing was replaced. Check the disk, or choose another place."
            ) from error
        raise


@contextlib.contextmanager
def temporary_folder(fill: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a new folder among the system's temporary ones, after ``fill`` has written to it; it is removed at the end.

    Disk errors of the writing are a :class:`UserError` that says how to choose another place for such folders.
    """
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(
            f"no folder for temporary files can be written: set TMPDIR to one that can ({error})"
        ) from error
    with contextlib.ExitStack() as stack:
        with disk_errors(place, instead="set TMPDIR to a folder on another disk"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skillweave-", dir=place)))
            fill(folder)
        yield folder


def _code(error: BaseException) -> int | None:
    """The error number of the system, or None; safetensors writes it into the error's text."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def _is_full(path: Path) -> bool:
    try:
        return free_bytes(path) < _FULL
    except OSError:
        return False


def free_bytes(path: Path) -> int:
    """The free bytes on the disk where ``path`` is or would be created."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(os.path.realpath(path))
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def check_room(path: Path, needed: int, what: str) -> None:
    """Raise :class:`UserError` if the disk of ``path`` has fewer than ``needed`` free bytes for ``what``."""
    try:
        free = free_bytes(path)
    except OSError:
        return  # some file systems do not report it
    if free < needed:
        raise UserError(
            f"no space left on the disk for {what}: {shown_of(path)} needs at least {human_bytes(needed)}, and "
            f"{human_bytes(free)} are free; nothing was replaced. Free some space or choose another place."
        )


def make_folders(path: Path) -> list[Path]:
    """Create a folder and its missing parents, each synced; return the created ones, the uppermost first."""
    made: list[Path] = []
    missing = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    try:
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.mkdir(folder)
                made.append(folder)
                sync_folder(folder.parent)
    except BaseException as error:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if isinstance(error, NotADirectoryError):
            raise UserError(f"{folder.parent} is a file, so nothing can be in it: choose another place") from None
        if isinstance(error, FileNotFoundError) and folder.parent.is_dir():
            raise no_place(folder.parent) from None
        raise
    return made


def no_place(folder: Path) -> PermissionError:
    """The error for a folder in which nothing can be created: /proc reports "not found" there, which misleads."""
    return PermissionError(errno.EPERM, "nothing can be made there", str(folder))


def sync_file(path: Path) -> None:
    """Sync a regular file to the disk. Links are not followed; anything else is not opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):  # a link, a pipe, a socket
            return
        raise
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Sync the names in a folder to the disk, if the file system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync a folder, all files in it and all names in it to the disk."""
    for root, _, files in os.walk(folder, topdown=False, onerror=_raise):
        for name in files:
            sync_file(Path(root) / name)
        sync_folder(Path(root))


def _raise(error: OSError) -> None:
    raise error


def exchange(one: Path, other: Path) -> None:
    """Swap two paths in one step, so that both exist at every moment. Raises :class:`Unsupported`."""
    _renameat2(one, other, _EXCHANGE)


def move_new(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; raises ``FileExistsError`` if something exists there."""
    try:
        _renameat2(source, target, _NOREPLACE)
    except Unsupported:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(source, target)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    code = renameat2(os.fsencode(source), os.fsencode(target), flags)
    if code in _UNKNOWN:
        raise Unsupported(os.strerror(code))
    if code:
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def renameat2(source: bytes, target: bytes, flags: int) -> int:
    """Linux's system call of that name: returns 0 or an error number (ENOSYS if the system does not have the call)."""
    call = _find_renameat2()
    if call is None:
        return errno.ENOSYS
    return 0 if call(_AT_FDCWD, source, _AT_FDCWD, target, flags) == 0 else ctypes.get_errno()


def _find_renameat2() -> Callable[..., int] | None:
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call


def remove(path: Path) -> OSError | None:
    """Remove a file, a link or a whole folder; return the first error if something of it is left, else None.

    A folder that its owner made read-only is made writable first.
    """
    first: list[OSError] = []

    def failed(function: Callable[..., object], name: str, info: tuple) -> None:
        error = info[1]
        if isinstance(error, FileNotFoundError):
            return
        if isinstance(error, PermissionError) and function in (os.unlink, os.rmdir, os.open, os.scandir):
            with contextlib.suppress(OSError):
                os.chmod(os.path.dirname(name), 0o700)
                if function in (os.unlink, os.rmdir):
                    function(name)
                    return
        first.append(error)

    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, onerror=failed)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return first[0] if first and os.path.lexists(path) else None
