"""Write a file or a folder so that a reader finds the old one or the new one, whenever the writer is killed.

A new version is written under a hidden name beside its place and brought to the disk whole: every file, every folder.
Then it takes the place in one step: a file by ``rename``, a folder by ``renameat2`` (exchange), so that there is no
moment without a version. Where a system cannot exchange, the old folder is moved aside first; where the folder itself
cannot be renamed (a mount point), its contents are. Both can be cut off at any call:
:mod:`~skillweave.files.recover` finishes them or takes them back, at the next write or read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from skillweave.errors import UserError
from skillweave.files.disk import (
    Unsupported,
    disk_errors,
    exchange,
    make_folders,
    move_new,
    sync_file,
    sync_folder,
    sync_tree,
)
from skillweave.files.lock import Claim, claim
from skillweave.files.place import (
    Place,
    is_mount,
    is_private,
    is_special,
    new_token,
    place_of,
    private,
    seal,
    stream_of,
)
from skillweave.files.recover import discard, finish_inside, recover
from skillweave.progress import console, say_once

_CANNOT_RENAME = {errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES}
"""What a system answers where a folder cannot be renamed but may be written into: a mount point, a layer of a container
image, a folder of ours in another user's."""
_TRIES = 50
"""How often a place is looked at anew that others, who take no lock, change under our hands."""
_PATIENCE = 60.0
"""Seconds that the write of a file waits for another one to the same place."""


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; on a clean exit it is synced and takes the place of ``path``.

    A link is followed and stays. An old file's permissions are kept, a new one has those of the umask. What is no file
    (``/dev/stdout``, a pipe) is written when all is there.
    """
    with disk_errors(Path(path)):
        if stream_of(path) is not None or is_special(path) or _in_place_only(path):
            with _into(path) as temporary:
                yield temporary
            return
        place = place_of(path)
        if place.path.is_dir():
            raise UserError(f"{path} is a folder, and a file is to be written there: name a file in it")
        if is_private(place.path):
            with _beside(place) as temporary:
                yield temporary
                os.replace(temporary, place.path)
            return
        with claim(path, patience=_PATIENCE) as held:
            recover(held)
            with _beside(place) as temporary:
                yield temporary
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(temporary, stat.S_IMODE(os.stat(place.path).st_mode))
                sync_file(temporary)
                os.replace(temporary, place.path)
                sync_folder(place.path.parent)


@contextlib.contextmanager
def _beside(place: Place) -> Iterator[Path]:
    """An empty hidden file beside a place, with the permissions of the umask; it is gone at the end."""
    make_folders(place.path.parent)
    temporary = place.beside("new", new_token())
    try:
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _in_place_only(path: str | Path) -> bool:
    """Whether a file can be written but not replaced: it is a mount point, or its folder may not be written."""
    real = Path(os.path.realpath(path))
    if not real.is_file() or not (is_mount(real) or not os.access(real.parent, os.W_OK | os.X_OK)):
        return False
    if os.access(real, os.W_OK):
        say_once(f"{path} cannot be replaced in one step where it lies: it is overwritten, and a kill may leave a half")
    return True


@contextlib.contextmanager
def _into(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file; on a clean exit its bytes are written into what is open, or lies, at ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "out"
        temporary.touch()
        yield temporary
        sys.stdout.flush()
        stream = stream_of(path)
        try:
            with (
                disk_errors(Path(path)),
                open(temporary, "rb") as source,
                open(path if stream is None else os.dup(stream), "wb") as target,
            ):
                shutil.copyfileobj(source, target)
        except BrokenPipeError:
            raise UserError(f"{path}: the reader of this pipe has ended") from None


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on a clean exit it takes the place of ``path``, and the old one is removed.

    A link to a folder is followed and stays. An old folder's permissions are kept, a new one has those of the umask.
    While another process writes there, it is a :class:`UserError` that names it.
    """
    with disk_errors(Path(path)):
        place = place_of(path)
        if os.path.lexists(place.path) and not place.path.is_dir():
            raise UserError(f"{path} is a file, and a folder is to be written there: choose another place")
        if is_private(place.path) and not (place.path.is_dir() and any(place.path.iterdir())):
            place.path.mkdir(parents=True, exist_ok=True)
            yield place.path  # a part of what is written under a temporary name already
            return
        with claim(path) as held:
            recover(held)
            token = new_token()
            try:
                with _hidden_folder(place, token) as temporary:
                    yield temporary
                _put(held, temporary, token)
            finally:
                _tidy(held, token)


@contextlib.contextmanager
def _hidden_folder(place: Place, token: str) -> Iterator[Path]:
    """Yield an empty hidden folder; on a clean exit it is synced and has the permissions that are wanted."""
    temporary = place.hidden("new", token)
    make_folders(place.path.parent)
    os.mkdir(temporary, 0o777)  # the umask and the folder's own rules make of it what they should
    mode = stat.S_IMODE(os.stat(temporary).st_mode)
    os.chmod(temporary, mode & ~0o077)  # until it is whole, nobody else can put a link into it
    with private(temporary, place.shown):
        yield temporary
    if not temporary.is_dir():
        raise UserError(f"{temporary} was removed while {place.shown} was written: write it again")
    if place.path.is_dir() and not place.inside:
        mode = stat.S_IMODE(os.stat(place.path).st_mode)
    sync_tree(temporary)
    os.chmod(temporary, mode)


def _tidy(held: Claim, token: str) -> None:
    try:
        recover(held, only=token)
    except OSError as error:
        console.print(
            f"{held.place.shown} could not be tidied up ({error.strerror}): its next write or read does so",
            markup=False,
        )


def try_rename(held: Claim) -> None:
    """Raise :class:`UserError` unless a folder can be made and renamed where a claimed place is."""
    token = new_token()
    one, other = held.place.hidden("new", token), held.place.hidden("del", token)
    with disk_errors(held.place.shown):
        try:
            os.mkdir(one)
            os.replace(one, other)
        finally:
            for folder in (one, other):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(folder)


def _put(held: Claim, temporary: Path, token: str) -> None:
    """Let the temporary folder, which is whole and synced, take the place; on an error the old one has it."""
    place = held.place
    if place.inside:
        _put_inside(place, temporary)
        return
    last: OSError | None = None
    for _ in range(_TRIES):
        try:
            _put_once(place, temporary, token)
            return
        except (FileExistsError, FileNotFoundError) as error:
            last = error  # somebody who takes no lock came in between: look again
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                last = error
            elif error.errno in _CANNOT_RENAME and place.path.is_dir():
                _put_inside(place, temporary)
                return
            else:
                raise
        if not temporary.is_dir():
            break
    raise UserError(f"{place.shown} changes while it is replaced ({last}): see to it that nothing else writes there")


def _put_once(place: Place, temporary: Path, token: str) -> None:
    if not os.path.lexists(place.path):
        move_new(temporary, place.path)
        _synced(place, lambda: os.replace(place.path, temporary))
        return
    if not stat.S_ISDIR(os.lstat(place.path).st_mode):
        raise UserError(f"{place.shown} is a file by now, and a folder is to be written there: choose another place")
    try:
        exchange(temporary, place.path)
    except Unsupported:
        _put_in_two_steps(place, temporary, token)
        return
    _synced(place, lambda: exchange(temporary, place.path))


def _put_in_two_steps(place: Place, temporary: Path, token: str) -> None:
    """Move the old version aside, then the new one in: between the two the place is empty, and can be recovered."""
    old = place.beside("old", token)
    os.replace(place.path, old)
    try:
        sync_folder(place.path.parent)
        os.replace(temporary, place.path)
        sync_folder(place.path.parent)
    except BaseException:
        if not temporary.exists():
            os.replace(place.path, temporary)
        if os.path.lexists(place.path):  # another process has put its own there
            discard(old, place.beside("del", token))
        else:
            os.replace(old, place.path)
        raise


def _synced(place: Place, undo: Callable[[], object]) -> None:
    """Bring the names beside the place to the disk; where that fails, the step before is undone."""
    try:
        sync_folder(place.path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            undo()
        raise


def _put_inside(place: Place, temporary: Path) -> None:
    """Exchange what a folder holds that cannot be renamed itself: from the name ``ready`` on, the new version wins."""
    os.chmod(temporary, 0o700)
    sealed = seal(place.path, temporary)
    try:
        os.replace(temporary, place.within("ready", sealed))
        sync_folder(place.path)
        finish_inside(place, sealed)
    except BaseException as first:
        try:
            finish_inside(place, sealed)
        except OSError as error:
            raise UserError(
                f"{place.shown} could not be replaced whole ({error}). Its new files are in {place.path} under hidden "
                f"names; the next command that opens it puts them in place."
            ) from error
        if temporary.is_dir() or not isinstance(first, OSError):
            raise
