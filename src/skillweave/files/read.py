"""Read text and JSON files; what cannot be read is a :class:`UserError` that names the file and the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from skillweave.errors import UserError

M = TypeVar("M", bound=BaseModel)


def read_text(path: str | Path, wanted: str = "a file") -> str:
    """The text of a UTF-8 file (a byte order mark is dropped); errors ask the person to name ``wanted``."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name {wanted}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name {wanted}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or damaged one is a :class:`UserError` that names the file and the line."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error


def read_versioned(path: str | Path, newest: int) -> Any:
    """Read JSON whose ``schema_version`` is from 1 to ``newest``; what a newer skillweave wrote is refused."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: the whole is no object with keys, as a card is. Copy or make the artefact again.")
    version = values.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        found = f"is {version!a:.40}" if "schema_version" in values else "is missing"
        raise UserError(
            f"{path}: schema_version {found}; expected a whole number from 1 to {newest}. Copy or make the artefact "
            f"again."
        )
    if version > newest:
        raise UserError(
            f"{path} has schema version {version}; this skillweave reads up to {newest}. Upgrade skillweave."
        )
    return values


def read_card_file(path: str | Path, card: type[M], newest: int, mend: str) -> M:
    """Read the card of an artefact; a field that does not fit is named, and ``mend`` says what to do."""
    try:
        return card.model_validate(read_versioned(path, newest))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise UserError(f"{path}: {place}: {problem['msg'].removeprefix('Value error, ')}. {mend}") from error
