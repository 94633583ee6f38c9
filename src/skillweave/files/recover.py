"""Finish, undo or remove what killed writes left beside or inside their place.

The hidden entries of a place, and what each means when no process writes there:

``new``     a version that is not finished, or an old one that was exchanged for a finished one: garbage
``old``     the previous version, moved aside complete because the system cannot exchange; its ``new`` is complete too
``ready``   inside the place: the new version, complete, while the old one is being removed
``in``      inside the place: the part of the new version that has not been moved to the place yet
``del``     garbage

A link with such a name is garbage: it is removed, and its target is not touched. A ``ready`` or ``in`` that this system
did not make (a stranger's archive may contain one) is left alone, and a note names it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from skillweave.errors import UserError
from skillweave.files.disk import disk_errors, remove, sync_folder
from skillweave.files.lock import Claim, claim
from skillweave.files.place import (
    LOST_AND_FOUND,
    Place,
    is_private,
    leftovers,
    leftovers_beside,
    leftovers_within,
    moved_aside,
    owner_of,
    place_of,
)
from skillweave.progress import console, say_once

_PATIENCE = 60.0
"""Seconds that a reader waits for a writer that exchanges two versions, which takes a moment unless it hangs."""


def settle(path: str | Path) -> None:
    """Finish or undo what a killed write left at a place that will be read, and print a note about it.

    Nothing is touched if the place is complete. Raises :class:`UserError`, with the commands to type, if this user has
    no permission to rename there.
    """
    with disk_errors(Path(path)):
        place = place_of(path)
        if is_private(place.path):
            return
        for kind, _, foreign in leftovers_within(place):
            if kind == "foreign":
                say_once(
                    f"{foreign} has the name of a version whose write was cut off, but it was not written here: it is "
                    f"left alone. If it is yours, move its contents to {place.shown}; otherwise delete it."
                )
        if not _unsettled(place):
            return
    try:
        with disk_errors(place.shown), claim(path, patience=_PATIENCE) as claimed:
            recover(claimed)
    except UserError as error:
        if _unsettled(place):
            raise UserError(f"{error}. A write of {place.shown} was cut off: {_by_hand(place)}") from error
    if _unsettled(place):
        raise UserError(f"a write of {place.shown} was cut off: {_by_hand(place)}")


def _unsettled(place: Place) -> bool:
    if place.path.is_dir():
        return any(kind in ("ready", "in") for kind, _, _ in leftovers_within(place))
    return not os.path.lexists(place.path) and any(kind == "old" for kind, _, _ in leftovers_beside(place))


def _by_hand(place: Place) -> str:
    within = [path for kind, _, path in leftovers_within(place) if kind in ("ready", "in")]
    if within:
        return f"open it once as a user who may write there; its files are in {within[0]}"
    return moved_aside(place.path) or "open it again"


def recover(claimed: Claim, only: str | None = None) -> None:
    """Finish or undo the killed writes of a claimed place, remove their garbage, and print what was done.

    ``only`` is the token of the one write to settle, without a message: a writer settles its own write so. On a file
    system without locks, a hidden folder may belong to a running writer, so it stays unless ``only`` names it.
    """
    place = claimed.place
    if only is None and not claimed.sure:
        return
    messages = _settle_beside(place, [left for left in leftovers_beside(place) if only in (None, left[1])])
    messages += _settle_within(place, [left for left in leftovers_within(place) if only in (None, left[1])])
    if messages and only is None:
        claimed.know()  # what was brought back was there before, so nobody has put it there since the claim
    for line in dict.fromkeys(messages if only is None else []):
        console.print(line, markup=False, soft_wrap=True)


def _settle_beside(place: Place, entries: list[tuple[str, str, Path]]) -> list[str]:
    messages = []
    old = [(token, path) for kind, token, path in entries if kind == "old"]
    if old and not os.path.lexists(place.path):
        new = {token: path for kind, token, path in entries if kind == "new"}
        # The old version is moved aside only when the new one is complete, so the new one is what the person wants.
        token, aside = max(old, key=lambda one: (one[0] in new, _time(one[1])))
        os.replace(new.get(token, aside), place.path)
        sync_folder(place.path.parent)
        messages.append(
            f"finished the write of {place.shown} that was cut off"
            if token in new
            else f"brought back {place.shown}, which a write that was cut off had moved aside"
        )
    for kind, token, path in entries:
        messages += discard(path, place.beside("del", token)) if kind == "old" else _removed(path)
    return messages


def _settle_within(place: Place, entries: list[tuple[str, str, Path]]) -> list[str]:
    messages = []
    for kind, token, path in entries:
        if kind in ("ready", "in"):
            finish_inside(place, token)
            messages.append(f"finished the write of {place.shown} that was cut off")
        elif kind != "foreign":
            messages += _removed(path)
    return messages


def _time(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def discard(path: Path, name: Path) -> list[str]:
    """Rename a complete version and then remove it, so that a partly removed one never looks complete.

    Returns the lines to print.
    """
    if not os.path.lexists(path):
        return []
    try:
        os.replace(path, name)
    except OSError as error:
        _print_left(path, error)
        return []
    return _removed(name)


def _removed(path: Path) -> list[str]:
    if not os.path.lexists(path):
        return []
    if (error := remove(path)) is not None:
        _print_left(path, error)
        return []
    return [f"removed {path}, left by a write that was cut off"]


def _print_left(path: Path, error: OSError) -> None:
    console.print(f"{path} is not needed and could not be removed ({error.strerror}): delete it", markup=False)


def finish_inside(place: Place, token: str) -> None:
    """Replace the contents of a place by the new version that is ready inside it; can be interrupted and repeated."""
    ready, moving = place.within("ready", token), place.within("in", token)
    if ready.is_dir() and not ready.is_symlink():
        names = set(os.listdir(ready))
        for name in sorted(os.listdir(place.path), key=_cards_first):
            # A hidden file that the new version does not have is not ours (.Trash-1000, .nfs...).
            if name == LOST_AND_FOUND or (name.startswith(".") and name not in names):
                continue
            if (error := remove(place.path / name)) is not None:
                raise error
        sync_folder(place.path)
        os.replace(ready, moving)
        sync_folder(place.path)
    if not moving.is_dir() or moving.is_symlink():
        return
    for name in sorted(os.listdir(moving), key=_cards_first, reverse=True):
        os.replace(moving / name, place.path / name)
    sync_folder(place.path)
    os.rmdir(moving)


def _cards_first(name: str) -> tuple[bool, str]:
    """Sort key: JSON files are removed first and added last, because a folder without its card is not an artefact."""
    return not name.endswith(".json"), name


def sweep(folder: Path) -> None:
    """Settle all killed writes anywhere in ``folder``, which the caller has claimed, and print what was done."""
    for root, folders, files in os.walk(folder):
        owners = {owner_of(Path(root) / name) for name in (*folders, *files)} - {None}
        folders[:] = [name for name in folders if owner_of(Path(root) / name) is None]
        for owner in sorted(owner for owner in owners if owner is not None):
            # A shortened name does not tell which place it belongs to: the next write of that place settles it.
            if owner != Path(root) and not re.search(r"~[0-9a-f]{12}$", owner.name):
                with claim(owner) as claimed:
                    recover(claimed)
                folders += [owner.name] * (owner.is_dir() and owner.name not in folders)
        if leftovers(Path(root), "skillweave"):
            settle(root)


def drop(folder: Path) -> None:
    """Remove a folder so that a kill leaves it complete or gone. Raises ``OSError`` if something cannot be removed."""
    place = place_of(folder)
    aside = place.beside("del", "00000000")
    for path in (aside, place.path):
        if os.path.lexists(path):
            if path != aside:
                os.replace(path, aside)
                sync_folder(path.parent)
            if (error := remove(aside)) is not None:
                raise error
