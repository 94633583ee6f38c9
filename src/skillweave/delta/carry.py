"""Files that travel with a delta because tuning changed them: the tokenizer, its chat template, how to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillweave.files.read import read_bytes, read_json_object

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
        return read_bytes(file)
    values = read_json_object(file)
    ignored = _BOOKKEEPING if file.name in _WITH_BOOKKEEPING else ()
    return {key: value for key, value in values.items() if key not in ignored}
