"""Carried files, opened: the tokenizer and the generation config that a fine-tune answers with."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skillweave.base.defaults import generation_config_at
from skillweave.base.open import Base, open_tokenizer
from skillweave.delta.carry import GENERATION_FILE, Carried, write_carried
from skillweave.errors import UserError


def carried_tokenizer(carried: Carried, base: Base, owner: str = "the delta") -> Any:
    """The tokenizer among the files; that of ``base`` where there is none.

    ``owner`` is what it travels with, for messages.
    Raises :class:`UserError` where transformers does not open it.
    """
    if not carried.has_tokenizer:
        return base.tokenizer
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_carried(carried, base.path, folder)
        if (base.path / "config.json").is_file():  # it tells the kind of tokenizer where nothing else does
            shutil.copyfile(base.path / "config.json", folder / "config.json")
        with _told_of(folder, f"the tokenizer that travels with {owner}"):
            tokenizer = open_tokenizer(folder)
        tokenizer.travels_with, tokenizer.name_or_path = owner, ""  # the folder is gone in a moment
        return tokenizer


def carried_generation(carried: Carried, owner: str = "the delta") -> Any:
    """The generation config among the files, or None. ``owner`` is what it travels with, for messages."""
    if GENERATION_FILE not in carried.files:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / GENERATION_FILE).write_bytes(carried.files[GENERATION_FILE])
        with _told_of(folder, f"the file that travels with {owner}"):
            return generation_config_at(folder)


@contextlib.contextmanager
def _told_of(folder: Path, what: str) -> Iterator[None]:
    """Within, an error about the temporary ``folder`` is one about ``what``: the folder is gone when it is read."""
    try:
        yield
    except UserError as error:
        said = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it")
        raise UserError(f"{what}: {said}") from error
