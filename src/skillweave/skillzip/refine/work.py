"""The folder in which a zip keeps what it must not lose when it is killed."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skillweave.artefact import sweep, write_json
from skillweave.base.safetensors_io import tensor_bytes
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.disk import make_folders
from skillweave.files.hashes import digest
from skillweave.files.lock import claim
from skillweave.files.read import read_json
from skillweave.files.recover import drop
from skillweave.progress import bar, console

_INPUTS = "refine.json"
"""The file that names the inputs of the zip in a folder."""


@contextlib.contextmanager
def work_folder(folder: Path | None, inputs: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folder for a zip with these ``inputs``: with what an earlier one of the same inputs left there.

    Work of other inputs in it is deleted, which is said. None stands for a temporary folder, from which nothing can be
    resumed. Raises :class:`UserError` if the folder holds something else.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    with claim(folder):
        key = digest(inputs)
        make_folders(folder)
        sweep(folder)
        file = folder / _INPUTS
        if file.exists():
            stored = read_json(file)
            if not isinstance(stored, dict) or stored.get("key") != key:
                console.print(
                    f"  {folder} holds the work of another zip: it is deleted, and this one begins anew",
                    soft_wrap=True,
                )
                drop(folder)
                make_folders(folder)
            elif len(list(folder.iterdir())) > 1:
                console.print(f"  the zip resumes with what is in {folder}", soft_wrap=True)
        elif any(folder.iterdir()):
            raise UserError(f"{folder} holds something that is not the work of a zip: move it, or choose another")
        if not file.exists():
            try:
                write_json(file, {"key": key, "inputs": dict(inputs)})
            except UserError:
                drop(folder)
                raise
        yield folder


def delta_digest(delta: Delta) -> str:
    """Return a hash of all values of a delta, for which each tensor is read once."""
    sha = hashlib.sha256()
    with bar("reading the delta", len(delta.names()), trace=False) as advance:
        for name in delta.names():
            sha.update(name.encode())
            for part in delta.factors(name) or (delta.tensor(name),):
                sha.update(tensor_bytes(part))
            advance()
    return sha.hexdigest()[:16]
