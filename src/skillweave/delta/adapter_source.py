"""Find an adapter: in a folder, in a subfolder, or in a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

from skillweave.base.hub import download
from skillweave.delta.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from skillweave.delta.carry import TOKENIZER_FILES
from skillweave.errors import UserError
from skillweave.files.recover import settle

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FORMS = "a folder with adapter_config.json, or a hub id (owner/name)"


def adapter_folder(ref: str | Path, *, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The folder of an adapter. From the hub, only the adapter's own files and its tokenizer are downloaded.

    Args:
        ref: A folder, or ``owner/name`` on the hub.
        revision: A branch, tag or commit of the hub.
        subfolder: The adapter's folder inside ``ref``.

    Raises :class:`UserError` if there is no such folder or repository.
    """
    inner = _inner(subfolder)
    path = Path(ref).expanduser()
    settle(path)
    if path.is_dir():
        if revision is not None:
            raise UserError(
                f"--revision {revision}: {path} is a folder, and only repositories of the hub have revisions: leave it "
                f"out"
            )
        folder = path / inner
        if not folder.is_dir():
            raise UserError(f"--subfolder {subfolder}: {path} has no such folder")
        if not folder.resolve().is_relative_to(path.resolve()):
            raise UserError(f"--subfolder {subfolder} leads out of {path}: name a folder in it")
        return folder
    if path.is_file():
        raise UserError(f"{path} is a file: name {_FORMS}")
    if not _HUB_ID.fullmatch(str(ref)):
        raise UserError(f"no adapter is found at '{ref}': name {_FORMS}")
    return _from_hub(str(ref), revision, inner) / inner


def _inner(subfolder: str | None) -> PurePosixPath:
    """The subfolder as a relative path that does not leave its parent."""
    if subfolder is None:
        return PurePosixPath()
    inner = PurePosixPath(subfolder)
    if inner.is_absolute() or ".." in inner.parts or "\\" in subfolder or "\0" in subfolder or not inner.parts:
        raise UserError(f"--subfolder {subfolder!r}: name a folder inside the adapter's, such as 'epoch-3'")
    return inner


def _from_hub(name: str, revision: str | None, inner: PurePosixPath) -> Path:
    files = (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES, "additional_chat_templates/*.jinja")
    folder = download(
        name,
        [str(inner / file) for file in files],
        revision=revision,
        what="repository",
        forms=_FORMS,
        offline="a folder, or an adapter that was downloaded before",
    )
    if not (folder / inner / CONFIG_FILE).is_file():
        raise UserError(f"the hub's '{name}' has no {inner / CONFIG_FILE}{_others(name, revision)}")
    return folder


def _others(name: str, revision: str | None) -> str:
    """The end of a message: the subfolders of the repository that do hold adapters, if the hub lists its files."""
    try:
        files = HfApi().list_repo_files(name, revision=revision)
    except Exception:  # only a hint, and the errors of the HTTP library have no documented base class
        return ": name a repository that holds a PEFT adapter"
    folders = sorted(str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name == CONFIG_FILE)
    if not folders:
        return ": name a repository that holds a PEFT adapter"
    return f"; it has adapters in {', '.join(folders[:8])}: name one with --subfolder"
