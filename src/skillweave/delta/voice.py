"""Open the tokenizer and the generation config among the files that travel with a delta or a pack."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skillweave.base.defaults import generation_config_at
from skillweave.base.open import Base, open_tokenizer
from skillweave.delta.carry import GENERATION_FILE, Carried, write_carried
from skillweave.errors import UserError
from skillweave.files.disk import temporary_folder


def carried_tokenizer(carried: Carried, base: Base, owner: str = "the delta") -> Any:
    """The tokenizer among the files, or that of ``base`` if there is none.

    ``owner`` names what it travels with, for messages. Raises :class:`UserError` if transformers does not open it.
    """
    if not carried.has_tokenizer:
        return base.tokenizer

    def fill(folder: Path) -> None:
        write_carried(carried, base.path, folder)
        if (base.path / "config.json").is_file():  # sometimes only this names the kind of tokenizer
            shutil.copyfile(base.path / "config.json", folder / "config.json")

    with temporary_folder(fill) as folder:
        with _errors_about(folder, f"the tokenizer that travels with {owner}"):
            tokenizer = open_tokenizer(folder)
        tokenizer.travels_with, tokenizer.name_or_path = owner, ""  # the folder is temporary
        return tokenizer


def carried_generation(carried: Carried, owner: str = "the delta") -> Any:
    """The generation config among the files, or None. ``owner`` names what it travels with, for messages."""
    if GENERATION_FILE not in carried.files:
        return None
    file = carried.files[GENERATION_FILE]
    with (
        temporary_folder(lambda folder: (folder / GENERATION_FILE).write_bytes(file)) as folder,
        _errors_about(folder, f"the file that travels with {owner}"),
    ):
        return generation_config_at(folder)


@contextlib.contextmanager
def _errors_about(folder: Path, what: str) -> Iterator[None]:
    """Turn an error about the temporary ``folder`` into one about ``what``: the user never sees the folder."""
    try:
        yield
    except UserError as error:
        message = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it")
        raise UserError(f"{what}: {message}") from error
