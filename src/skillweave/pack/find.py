"""Find a pack: in a folder, or in a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from skillweave.base.hub import download
from skillweave.delta.carry import FOLDER
from skillweave.errors import UserError
from skillweave.files.read import check_folder, home_path, is_file, is_folder
from skillweave.files.recover import settle
from skillweave.pack.stored import CARD_FILE, CODED_FILE, DATA_FILE

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = "the folder of a saved pack, or a hub id (owner/name)"


def pack_folder(ref: str | Path) -> Path:
    """Return the folder of a pack; from the hub, only the files of a pack are downloaded.

    The hub's client keeps files as links into its own folder of blobs, and these are the only links that are followed
    (:mod:`skillweave.files.folder`). Raises :class:`UserError` if there is no such folder or repository.
    """
    folder = home_path(ref)
    settle(folder)
    if is_folder(folder) or not _HUB_ID.fullmatch(str(ref)):
        check_folder(folder, _WANTED)
        return folder
    if is_file(folder):
        raise UserError(f"{folder} is a file: name {_WANTED}")
    parts = [CARD_FILE, DATA_FILE, CODED_FILE, f"{FOLDER}/*"]
    found = download(str(ref), parts, what="repository", forms=_WANTED, offline="a folder")
    if not is_file(found / CARD_FILE):
        raise UserError(f"the hub's '{ref}' has no {CARD_FILE}: name a repository that holds a pack")
    return found
