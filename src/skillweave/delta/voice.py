"""Carried files, opened: the tokenizer and the generation config that a fine-tune answers with."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillweave.base.defaults import generation_config_at
from skillweave.base.open import open_tokenizer
from skillweave.delta.carry import GENERATION_FILE, Carried, write_carried
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.base.open import Base


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
        try:
            tokenizer = open_tokenizer(folder)
        except UserError as error:
            said = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it")
            raise UserError(f"the tokenizer that travels with {owner}: {said}") from error
        tokenizer.travels_with, tokenizer.name_or_path = owner, ""  # the folder is gone in a moment
        return tokenizer


def carried_generation(carried: Carried) -> Any:
    """The generation config among the files, or None."""
    if GENERATION_FILE not in carried.files:
        return None
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / GENERATION_FILE).write_bytes(carried.files[GENERATION_FILE])
        return generation_config_at(Path(name))
