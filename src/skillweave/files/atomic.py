"""Write a file or a folder so that a reader finds the old one or the new one, whenever the writer is killed.

A new version is written under a hidden name beside its place, and every file and folder of it is synced to the disk.
Then it takes the place in one step: a file by ``rename``, a folder by ``renameat2`` (exchange), so there is always a
whole version. Two cases need several steps: a system that cannot exchange (the old folder is moved aside first), and a
folder that cannot be renamed because it is a mount point (its contents are moved). A kill can interrupt both at any
call; the next write or read then finishes them or undoes them (:mod:`~skillweave.files.recover`).
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
"""Error numbers for a folder that cannot be renamed but may be written into: a mount point, a layer of a container
image, or our own folder inside another user's."""
_TRIES = 50
"""How often a write is tried again when other programs, which take no lock, change the place meanwhile."""
_PATIENCE = 60.0
"""Seconds that the write of a file waits for another write to the same place."""


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; on a clean exit the file there is synced and takes the place of ``path``.

    - A link is followed, and stays a link.
    - The permissions of an old file are kept; a new file gets those of the umask.
    - If ``path`` is a device or a pipe (``/dev/stdout``), the bytes are written to it at the end.
    """
    with disk_errors(Path(path)):
        if stream_of(path) is not None or is_special(path) or in_place_only(path):
            with _into(path) as temporary:
                yield temporary
            return
        place = place_of(path)
        if place.path.is_dir():
            raise UserError(f"{path} is a folder, but a file is written there: name a file in it")
        if is_private(place.path):
            with _beside(place) as temporary:
                yield temporary
                os.replace(temporary, place.path)
            return
        with claim(path, patience=_PATIENCE) as claimed:
            recover(claimed)
            with _beside(place) as temporary:
                yield temporary
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(temporary, stat.S_IMODE(os.stat(place.path).st_mode))
                sync_file(temporary)
                os.replace(temporary, place.path)
                sync_folder(place.path.parent)


@contextlib.contextmanager
def _beside(place: Place) -> Iterator[Path]:
    """Yield an empty hidden file beside a place, with the permissions of the umask; it is removed at the end."""
    make_folders(place.path.parent)
    temporary = place.beside("new", new_token())
    try:
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def in_place_only(path: str | Path) -> bool:
    """Whether a file cannot be replaced: it is a mount point, or its folder may not be written. A note says so once."""
    real = Path(os.path.realpath(path))
    if not real.is_file() or not (is_mount(real) or not os.access(real.parent, os.W_OK | os.X_OK)):
        return False
    if os.access(real, os.W_OK):
        say_once(
            f"{path} cannot be replaced in one step where it is: it is overwritten, and a kill may leave half of it"
        )
    return True


@contextlib.contextmanager
def _into(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file; on a clean exit its bytes are written to the stream, device or file at ``path``."""
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
    """Yield an empty temporary folder; on a clean exit it takes the place of ``path``, and the old folder is removed.

    - A link to a folder is followed, and stays a link.
    - The permissions of an old folder are kept; a new folder gets those of the umask.
    - If another process writes there, a :class:`UserError` names that process.
    - If the old folder got files of others since it was claimed, it is kept beside the place, and a note names it.
    """
    with disk_errors(Path(path)):
        place = place_of(path)
        if os.path.lexists(place.path) and not place.path.is_dir():
            raise UserError(f"{path} is a file, but a folder is written there: choose another place")
        if is_private(place.path) and not (place.path.is_dir() and any(place.path.iterdir())):
            place.path.mkdir(parents=True, exist_ok=True)
            yield place.path  # it is inside a folder that already has a temporary name
            return
        with claim(path) as claimed:
            recover(claimed)
            token = new_token()
            try:
                with _hidden_folder(place, token) as temporary:
                    yield temporary
                _put(claimed, temporary, token)
                _keep_strangers(claimed, token)
                claimed.know()
            finally:
                _tidy(claimed, token)


@contextlib.contextmanager
def _hidden_folder(place: Place, token: str) -> Iterator[Path]:
    """Yield an empty hidden folder; on a clean exit it is synced and gets its final permissions."""
    temporary = place.hidden("new", token)
    make_folders(place.path.parent)
    os.mkdir(temporary, 0o777)  # the umask and the parent folder's rules reduce this
    mode = stat.S_IMODE(os.stat(temporary).st_mode)
    os.chmod(temporary, mode & ~0o077)  # while it is incomplete, nobody else can put a link into it
    with private(temporary, place.shown):
        yield temporary
    if not temporary.is_dir():
        raise UserError(f"{temporary} was removed while {place.shown} was written: write it again")
    if place.path.is_dir() and not place.inside:
        mode = stat.S_IMODE(os.stat(place.path).st_mode)
    sync_tree(temporary)
    os.chmod(temporary, mode)


def _keep_strangers(claimed: Claim, token: str) -> None:
    """Keep the old version, which is replaced and hidden now, if it got files after the place was claimed."""
    place = claimed.place
    for old in (place.beside("new", token), place.beside("old", token)):
        if strangers := claimed.strangers(old):
            os.replace(old, place.kept(token))
            console.print(
                f"{place.shown} got '{strangers[0]}' while it was written anew: the folder as it was is kept as "
                f"{place.kept(token)}",
                markup=False,
                soft_wrap=True,
            )


def _tidy(claimed: Claim, token: str) -> None:
    try:
        recover(claimed, only=token)
    except OSError as error:
        console.print(
            f"{claimed.place.shown} could not be tidied up ({error.strerror}): its next write or read tries again",
            markup=False,
        )


def try_rename(claimed: Claim) -> None:
    """Raise :class:`UserError` unless a folder can be made and renamed beside a claimed place."""
    token = new_token()
    one, other = claimed.place.hidden("new", token), claimed.place.hidden("del", token)
    with disk_errors(claimed.place.shown):
        try:
            os.mkdir(one)
            os.replace(one, other)
        finally:
            for folder in (one, other):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(folder)


def _put(claimed: Claim, temporary: Path, token: str) -> None:
    """Move the temporary folder, which is complete and synced, to the place; on an error the old one stays there."""
    place = claimed.place
    if place.inside:
        _put_inside(claimed, temporary)
        return
    last: OSError | None = None
    for _ in range(_TRIES):
        try:
            _put_once(place, temporary, token)
            return
        except (FileExistsError, FileNotFoundError) as error:
            last = error  # another program, which takes no lock, changed the place meanwhile: try again
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                last = error
            elif error.errno in _CANNOT_RENAME and place.path.is_dir():
                _put_inside(claimed, temporary)
                return
            else:
                raise
        if not temporary.is_dir():
            break
    raise UserError(f"{place.shown} changes while it is replaced ({last}): make sure that nothing else writes there")


def _put_once(place: Place, temporary: Path, token: str) -> None:
    if not os.path.lexists(place.path):
        move_new(temporary, place.path)
        _synced(place, lambda: os.replace(place.path, temporary))
        return
    if not stat.S_ISDIR(os.lstat(place.path).st_mode):
        raise UserError(f"{place.shown} has become a file, but a folder is written there: choose another place")
    try:
        exchange(temporary, place.path)
    except Unsupported:
        _put_in_two_steps(place, temporary, token)
        return
    _synced(place, lambda: exchange(temporary, place.path))


def _put_in_two_steps(place: Place, temporary: Path, token: str) -> None:
    """Move the old version aside, then the new one in. In between the place is empty, but it can be recovered."""
    old = place.beside("old", token)
    os.replace(place.path, old)
    try:
        sync_folder(place.path.parent)
        os.replace(temporary, place.path)
        sync_folder(place.path.parent)
    except BaseException:
        if not temporary.exists():
            os.replace(place.path, temporary)
        if os.path.lexists(place.path):  # another process has put its own version there
            discard(old, place.beside("del", token))
        else:
            os.replace(old, place.path)
        raise


def _synced(place: Place, undo: Callable[[], object]) -> None:
    """Sync the folder that holds the place; if that fails, call ``undo`` to take the rename back."""
    try:
        sync_folder(place.path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            undo()
        raise


def _put_inside(claimed: Claim, temporary: Path) -> None:
    """Exchange the contents of a folder that cannot be renamed itself.

    Once the new version has the name ``ready``, it wins: recovery finishes the exchange.
    """
    place = claimed.place
    new = set(os.listdir(temporary))
    # Hidden files that the new version does not have are left alone (see finish_inside).
    deleted = (name for name in claimed.strangers(place.path) if not name.startswith(".") or name.split("/")[0] in new)
    if (stranger := next(deleted, None)) is not None:
        kept = place.path / f"{place.path.name}.kept-{new_token()}"
        os.replace(temporary, kept)
        raise UserError(
            f"{place.shown} got '{stranger}' while it was written anew, which would be deleted: the new version is in "
            f"{kept}. Move '{stranger}' away, and the new files to their place"
        )
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
                f"{place.shown} could not be replaced completely ({error}). Its new files are in {place.path} under "
                f"hidden names; the next command that opens it puts them in place."
            ) from error
        if temporary.is_dir() or not isinstance(first, OSError):
            raise
