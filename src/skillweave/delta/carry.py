"""Files that travel with a delta because tuning changed them: the tokenizer, its chat template, how to generate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from skillweave.errors import UserError
from skillweave.files.folder import check_regular
from skillweave.files.read import read_json, read_text

FOLDER = "files"
"""The subfolder of a delta in which they lie."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)
GENERATION_FILE = "generation_config.json"
_TEMPLATE = re.compile(r"additional_chat_templates/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\.jinja")
# Keys by which transformers finds Python code, or another file, that a folder brings along.
_CODE = ("auto_map", "custom_generate", "custom_pipelines", "trust_remote_code")

# What transformers notes about how and when a file was written, and the padding of the last batch it saw.
_BOOKKEEPING = {
    "transformers_version",
    "_from_model_config",
    "is_local",
    "local_files_only",
    "name_or_path",
    "padding",
    "truncation",
}
_WITH_BOOKKEEPING = {"tokenizer.json", "tokenizer_config.json", GENERATION_FILE}


def changed_files(base: Path, tuned: Path) -> list[Path]:
    """Files of ``tuned`` that must replace those of ``base``.

    The tokenizer is one thing in several files, so it comes whole or not at all: not where ``tuned`` has none, and
    not where the two mean the same. JSON files are compared by value, less the notes of who wrote them.
    """
    files = []
    theirs = [tuned / name for name in TOKENIZER_FILES if (tuned / name).is_file()]
    for file in [*theirs, *([tuned / GENERATION_FILE] if (tuned / GENERATION_FILE).is_file() else [])]:
        check_regular(file, tuned)
    if any(_meaning(file) != _meaning(base / file.name) for file in theirs):
        files += theirs
    generation = tuned / GENERATION_FILE
    if generation.is_file() and _meaning(generation) != _meaning(base / GENERATION_FILE):
        files.append(generation)
    return files


def _meaning(file: Path) -> Any:
    if not file.is_file():
        return None
    if file.suffix != ".json":
        return file.read_bytes()
    values = json.loads(file.read_text(encoding="utf-8"))
    ignored = _BOOKKEEPING if file.name in _WITH_BOOKKEEPING else ()
    return {key: value for key, value in values.items() if key not in ignored}


def may_travel(name: str) -> bool:
    """Whether a file of this name, relative to ``files/``, may lie there."""
    return name in (*TOKENIZER_FILES, GENERATION_FILE) or _TEMPLATE.fullmatch(name) is not None


def check_travels(key: str, where: Path, fix: str) -> None:
    """Raise :class:`UserError` unless the file ``key`` (``files/NAME``) of the artefact in ``where`` may lie there."""
    if not may_travel(key.removeprefix(f"{FOLDER}/")):
        raise UserError(
            f"{where}: '{key}' may not travel with it: only the files of a tokenizer, chat templates and "
            f"{GENERATION_FILE} do. {fix}"
        )


def check_carried(file: Path, fix: str) -> None:
    """Raise :class:`UserError` unless a carried file is text or an object of JSON that brings no code."""
    if file.suffix == ".model":
        return  # a vocabulary of sentencepiece, in binary
    if file.suffix != ".json":
        read_text(file)
        return
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected an object with keys, found {type(values).__name__}. {fix}")
    for key in _CODE:
        if values.get(key):
            raise UserError(f"{file}: '{key}' names code. Code that comes with a folder is never run. {fix}")
