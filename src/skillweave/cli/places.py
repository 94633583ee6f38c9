"""Check and claim the places that a command writes to, before its work begins and not after it.

``called`` is the option or the argument that names the place, for messages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from skillweave.errors import UserError
from skillweave.files.parse_json import parse_json
from skillweave.files.read import LARGEST_TEXT, open_file, read_json, split_lines

if TYPE_CHECKING:
    from skillweave.files.place import Place

_CLAIMS = ExitStack()


def release_places() -> None:
    """Release all places that the checks of this module claimed; called when a command ends."""
    _CLAIMS.close()


def check_place(out: Path, *, replaced: bool = True, called: str = "--out") -> Place:
    """The place behind ``out``. Raises :class:`UserError` if it cannot be made or, with ``replaced``, be replaced."""
    from skillweave.files.disk import existing
    from skillweave.files.place import place_of

    if out.name in ("", "..") or "\0" in str(out):
        raise UserError(f"{called} {out}: name a new folder; the current folder, or one above it, cannot be replaced")
    try:
        place, there = place_of(out), existing(out)
    except OSError as error:
        raise UserError(f"{called} {out}: {error.strerror}: choose another place") from error
    if replaced and Path.cwd().is_relative_to(place.path):
        raise UserError(f"{called} {out} is the current folder, or above it, and cannot be replaced: choose another")
    if there != place.path and not there.is_dir():
        raise UserError(f"{called} {out}: {there} is a file, so nothing can be in it: choose another place")
    writable = place.path if place.inside else there if there != place.path else place.path.parent
    if not os.access(writable, os.W_OK | os.X_OK):
        raise UserError(f"{called} {out}: no permission to write in {writable}: choose another place")
    return place


def check_file(
    out: Path, *sources: str | Path | None, ours: Callable[[Path], bool], kind: str, called: str = "--out"
) -> None:
    """Claim the file ``out`` for this command. Raises :class:`UserError` unless it can be written.

    ``ours`` says whether a file is an older result of the same ``kind``, which is replaced, as an empty file is. A
    device or a pipe (``/dev/stdout``, ``/dev/null``) is accepted too. None of ``sources``, the files that the command
    reads, may be replaced.
    """
    from skillweave.files.atomic import in_place_only
    from skillweave.files.place import is_special, stream_of

    if stream_of(out) is not None or is_special(out):
        return
    for source in sources:
        if source is not None and os.path.realpath(source) == os.path.realpath(out):
            raise UserError(f"{called} {out} is {source}, which this command only reads: choose another place")
    if not (os.access(out, os.W_OK) and in_place_only(out)):  # else there may be no place for a lock
        check_place(out, replaced=False, called=called)
        if out.is_dir():
            raise UserError(f"{called} {out} is a folder: name a file in it")
        _claim(out)
    if os.path.isfile(out) and os.path.getsize(out) and not ours(out):
        raise UserError(f"{called} {out} holds something that is not {kind}: choose another place, or delete it first")


def has_keys(*keys: str, **among: Collection[str]) -> Callable[[Path], bool]:
    """Return a function that says whether a JSON file, or the first line of a JSONL file, is an object with these keys.

    ``among`` names further keys, each with the texts that its value may be.
    """

    def found(file: Path) -> bool:
        with open_file(file) as opened:
            line = next(split_lines(opened, LARGEST_TEXT), b"")
        try:
            value = read_json(file) if line.strip() == b"{" else parse_json(line.decode(), str(file))
        except (UserError, UnicodeDecodeError):
            return False
        return (
            isinstance(value, dict)
            and set(keys) <= set(value)
            and all(isinstance(value.get(key), str) and value[key] in texts for key, texts in among.items())
        )

    return found


def check_folder(
    out: Path, ours: Callable[[Path], bool], kind: str, *, parts: Collection[str] | None, called: str = "--out"
) -> None:
    """Claim the folder ``out`` for this command.

    ``ours`` says whether a folder is an older result of the same ``kind``. An older result is replaced as a whole;
    ``parts`` names all files that it may have (:func:`~skillweave.files.place.check_parts`), and is None if the command
    resumes in it. Raises :class:`UserError` if ``out`` has anything else, which would be lost.
    """
    from skillweave.files.place import check_parts

    check_place(out, replaced=parts is not None, called=called)
    _claim(out)
    if _occupied(out, called) and not ours(out):
        raise UserError(f"{called} {out} holds something that is not a {kind}: choose another place")
    if parts is not None:
        check_parts(out, parts, kind)


def check_new_folder(out: Path, *, called: str = "--out") -> None:
    """Claim the folder ``out``. Raises :class:`UserError` if it is not empty: a model is never replaced unasked."""
    check_place(out, called=called)
    _claim(out)
    if _occupied(out, called):
        raise UserError(f"{called} {out} holds something already: choose another place, or delete it first")


def check_apart(out: Path, *, replaced: bool = True, called: str = "--out", **sources: str | Path | None) -> None:
    """Raise :class:`UserError` if ``out`` is inside a folder that the command reads.

    With ``replaced``, also if such a folder is inside ``out``, because it would be deleted. ``sources`` has the name of
    each folder for the message.
    """
    target = Path(os.path.realpath(out))
    for name, source in sources.items():
        if source is None or not os.path.exists(os.path.expanduser(source)):
            continue  # a hub id, or a mistake that is reported when it is opened
        real = Path(os.path.realpath(os.path.expanduser(source)))
        if target.is_relative_to(real) or (replaced and real.is_relative_to(target)):
            relation = "is" if target == real else "is inside" if target.is_relative_to(real) else "contains"
            raise UserError(
                f"{called} {out} {relation} the {name} {source}, which this command only reads: choose another place"
            )


def is_run(folder: Path) -> bool:
    """Whether a folder is a method's work folder, also of a method that was killed before it wrote a visible file."""
    if not folder.is_dir():
        return False
    if all(path.name.startswith(".") or path.name == "lost+found" for path in folder.iterdir()):
        return True
    try:
        config = read_json(folder / "config.json")
    except UserError:
        return False
    return isinstance(config, dict) and {"method", "base", "config"} <= set(config)


def _occupied(out: Path, called: str) -> bool:
    from skillweave.files.place import is_occupied

    try:
        return is_occupied(out)
    except OSError as error:
        raise UserError(f"{called} {out} cannot be read ({error.strerror}): choose another place") from error


def _claim(out: Path) -> None:
    """Hold the lock of ``out`` until the command ends, and check that folders there can be renamed."""
    from skillweave.files.atomic import try_rename
    from skillweave.files.lock import claim

    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process writes
        try_rename(_CLAIMS.enter_context(claim(out)))
