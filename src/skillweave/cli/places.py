"""Where a command may write: told, and claimed, before the work and not after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from skillweave.errors import UserError
from skillweave.files.read import read_json

if TYPE_CHECKING:
    from skillweave.files.place import Place

_CLAIMS = ExitStack()


def release_places() -> None:
    """Give back what the checks of this module claimed: called when a command ends."""
    _CLAIMS.close()


def check_place(out: Path, *, replaced: bool = True) -> Place:
    """The place behind ``out``; :class:`UserError` unless it can be made, or where it is ``replaced`` be replaced."""
    from skillweave.files.disk import existing
    from skillweave.files.place import place_of

    if out.name in ("", "..") or "\0" in str(out):
        raise UserError(f"--out {out}: name a folder to make; the one you stand in, or above, cannot be replaced")
    try:
        place, there = place_of(out), existing(out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}: choose another place") from error
    if replaced and Path.cwd().is_relative_to(place.path):
        raise UserError(f"--out {out} is the folder you stand in, or above it, and cannot be replaced: choose another")
    if there != place.path and not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file, nothing can lie in it: choose another place")
    writable = place.path if place.inside else there if there != place.path else place.path.parent
    if not os.access(writable, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: you may not write in {writable}: choose another place")
    return place


def check_file(out: Path) -> None:
    """Raise :class:`UserError` unless a file can be written to ``out``; an old one is replaced.

    A device or a pipe (``/dev/stdout``, ``/dev/null``) is one too.
    """
    from skillweave.files.place import is_special, stream_of

    if stream_of(out) is not None or is_special(out):
        return
    if os.path.isfile(out) and os.access(out, os.W_OK):
        return  # where its folder may not be written it is overwritten in place
    check_place(out, replaced=False)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it")


def check_folder(out: Path, ours: Callable[[Path], bool], kind: str, *, replaced: bool = True) -> None:
    """Claim ``out`` for this command. Raises :class:`UserError` where it holds anything but an older ``kind``: a
    person's files are not ours. ``replaced``: what is there goes as a whole, and is not a folder to go on in."""
    check_place(out, replaced=replaced)
    _claim(out)
    if _occupied(out) and not ours(out):
        raise UserError(f"--out {out} holds something that is no {kind}: choose another place")


def check_new_folder(out: Path) -> None:
    """Claim ``out``. Raises :class:`UserError` where something lies there: a whole model is too dear to be replaced
    unasked."""
    check_place(out)
    _claim(out)
    if _occupied(out):
        raise UserError(f"--out {out} holds something already: choose another place, or delete it first")


def check_apart(out: Path, *, replaced: bool = True, **sources: str | Path | None) -> None:
    """Raise :class:`UserError` where ``out`` lies in a folder that the command reads, or where it is ``replaced`` and
    the folder lies in it."""
    target = Path(os.path.realpath(out))
    for name, source in sources.items():
        if source is None or not os.path.exists(os.path.expanduser(source)):
            continue  # a hub id, or told where it is opened
        real = Path(os.path.realpath(os.path.expanduser(source)))
        if target.is_relative_to(real) or (replaced and real.is_relative_to(target)):
            relation = "is" if target == real else "lies in" if target.is_relative_to(real) else "holds"
            raise UserError(f"--out {out} {relation} the {name} {source}, which is only read: choose another place")


def is_run(folder: Path) -> bool:
    """Whether a folder is the work folder of a method, also of one killed before it wrote more than a hidden file."""
    if not folder.is_dir():
        return False
    if all(path.name.startswith(".") or path.name == "lost+found" for path in folder.iterdir()):
        return True
    try:
        found = read_json(folder / "config.json")
    except UserError:
        return False
    return isinstance(found, dict) and {"method", "base", "config"} <= set(found)


def _occupied(out: Path) -> bool:
    from skillweave.files.place import is_occupied

    try:
        return is_occupied(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be read ({error.strerror}): choose another place") from error


def _claim(out: Path) -> None:
    """Hold the lock of ``out`` until the command ends, and see that files there can be renamed."""
    from skillweave.files.atomic import try_rename
    from skillweave.files.lock import claim

    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process writes
        try_rename(_CLAIMS.enter_context(claim(out)))
