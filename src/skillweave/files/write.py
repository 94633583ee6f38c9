"""Write files and folders so that a kill or a full disk leaves either the old one or the new one, never a half."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from skillweave.errors import UserError

if TYPE_CHECKING:
    import torch

_FULL = 2**20
"""A disk with fewer free bytes is full: what torch raises when it cannot write a checkpoint does not say so."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a :class:`UserError` that names the place."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        code, shown = getattr(error, "errno", None), _final(path)
        if code == errno.ENOSPC or "No space left" in str(error) or _is_full(path):
            raise UserError(
                f"no space left on the disk while writing {shown}; "
                f"nothing was replaced. Free some space or choose another folder."
            ) from error
        if code in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"may not write {shown}: {error}. Choose a folder you may write to.") from error
        raise


def _is_full(path: Path) -> bool:
    there = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    return there is not None and shutil.disk_usage(there).free < _FULL


def _final(path: Path) -> Path:
    """The path without the temporary name that :func:`atomic_folder` gives a folder while it is written."""
    return Path(*(re.sub(r"^\.(.+)\.new-\w+$", r"\1", part) for part in path.parts))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is synced and renamed to ``path``."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on a clean exit it takes the place of ``path``.

    A folder cannot be renamed over a full one, so the old one is moved aside first and removed last: a kill
    between the two renames leaves the old one, whole, under a hidden name beside the new one's place.
    """
    path = Path(path)
    if path.is_file():
        raise UserError(f"{path} is a file, and a folder is to be written there: choose another place")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new-"))
        old = temporary.with_name(temporary.name.replace(".new-", ".old-"))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what writes that were killed left anywhere in ``folder``: no other process may be writing there."""
    for left in [*folder.rglob(".*.new-*")]:
        shutil.rmtree(left, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically; keys keep their order, so that a diff of two runs reads well."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file atomically."""
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", **metadata})
