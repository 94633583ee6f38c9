"""Files that travel with a delta or a pack because tuning changed them: tokenizer, chat templates, how to generate.

They lie in the subfolder ``files/`` and come from one closed list (:func:`may_travel`). A pack stores them against the
files of its base (:func:`compact`): of an unchanged vocabulary nothing, of a ``tokenizer.json`` with added tokens only
the keys that differ (``tokenizer.changes.json``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillweave.errors import UserError
from skillweave.files.folder import Folder, check_regular
from skillweave.files.hashes import digest, sha256_file
from skillweave.files.parse_json import parse_json
from skillweave.files.read import read_bytes, read_json, read_text

FOLDER = "files"
"""The subfolder of a delta or a pack in which they lie."""
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Where the tokens are. The other files of a tokenizer are small."""
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE_FILE,
)
GENERATION_FILE = "generation_config.json"
CHANGES_FILE = "tokenizer.changes.json"
TEMPLATES_FOLDER = "additional_chat_templates"
_TEMPLATE = re.compile(rf"{TEMPLATES_FOLDER}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}}\.jinja")
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


def may_travel(name: str) -> bool:
    """Whether a file of this name, relative to ``files/``, may lie there."""
    return name in (*TOKENIZER_FILES, GENERATION_FILE, CHANGES_FILE) or bool(_TEMPLATE.fullmatch(name))


@dataclass(frozen=True)
class Carried:
    """The files of a fine-tune that replace those of its base.

    ``files`` maps names to bytes. A tokenizer is one thing in several files: where one of them is here, no file of the
    base's tokenizer counts but those in ``from_base`` (name -> digest of what it means, see :func:`meaning_digest`).
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    from_base: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(map(len, self.files.values()))

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer is among the files (a chat template is part of one)."""
        return any(name != GENERATION_FILE for name in self.files)


# -- what a fine-tune changes ------------------------------------------------------------------------------------------


def changed_files(base: Path, tuned: Path) -> Carried:
    """Files of ``tuned`` that must replace those of ``base``, whole.

    The tokenizer comes whole or not at all: not where ``tuned`` has none, and not where the two mean the same. JSON
    files are compared by value, less the notes of who wrote them; chat templates wherever they are written. A folder
    with parts of a tokenizer but no vocabulary (a chat template alone) takes the vocabulary of ``base``. End tokens
    that only ``config.json`` of ``tuned`` names are written into the generation config.
    """
    files: dict[str, bytes] = {}
    ours, theirs = _tokenizer_files(base), _tokenizer_files(tuned)
    if theirs and not set(theirs) & set(VOCABULARY_FILES):
        theirs = {**{name: file for name, file in ours.items() if name in VOCABULARY_FILES}, **theirs}
    if theirs and (
        any(_meaning(file) != _meaning(ours.get(name)) for name, file in theirs.items() if not _holds_template(name))
        or _templates(theirs) != _templates(ours)
    ):
        files |= {name: read_bytes(file) for name, file in theirs.items()}
    generation = _generation(base, tuned)
    if generation is not None:
        files[GENERATION_FILE] = generation
    return Carried(files)


def _tokenizer_files(folder: Path) -> dict[str, Path]:
    named = sorted((folder / TEMPLATES_FOLDER).glob("*.jinja")) if (folder / TEMPLATES_FOLDER).is_dir() else []
    names = [*TOKENIZER_FILES, *(f"{TEMPLATES_FOLDER}/{file.name}" for file in named)]
    found = {name: folder / name for name in names if may_travel(name) and (folder / name).is_file()}
    for file in found.values():
        check_regular(file, folder)
    return found


def _holds_template(name: str) -> bool:
    return name.endswith(".jinja")


def _templates(files: Mapping[str, Path]) -> dict[str, str]:
    """Chat templates by name, from wherever they are written; a file of their own counts before tokenizer_config."""
    found: dict[str, str] = {}
    config = read_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    given = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        found |= {str(one.get("name")): str(one.get("template")) for one in given if isinstance(one, dict)}
    for name, file in files.items():
        if _holds_template(name):
            found["default" if name == TEMPLATE_FILE else Path(name).stem] = read_text(file)
    return found


def _meaning(file: Path | None) -> Any:
    """What a file says, without notes of who wrote it and, for a tokenizer's config, without chat templates."""
    if file is None or not file.is_file():
        return None
    if file.suffix != ".json":
        return read_bytes(file)
    return _meant(file.name, read_json(file))


def _meant(name: str, values: Any) -> Any:
    if not isinstance(values, dict) or name not in _WITH_BOOKKEEPING:
        return values
    values = {key: value for key, value in values.items() if key not in _BOOKKEEPING}
    if name == "tokenizer_config.json":
        values.pop("chat_template", None)
    return _same_merges(values) if name == "tokenizer.json" else values


def _same_merges(values: dict[str, Any]) -> dict[str, Any]:
    """Merges as pairs: older tokenizers wrote "a b" where newer ones write ["a", "b"]."""
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        return values
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    unset = {key: value for key, value in model.items() if value not in (None, False)}
    return {**values, "model": {**unset, "merges": pairs}}


def _generation(base: Path, tuned: Path) -> bytes | None:
    """The tuned generation config where it means something else than the base's, else None."""
    file = tuned / GENERATION_FILE
    if file.is_file():
        check_regular(file, tuned)
    changed = file.is_file() and _meaning(file) != _meaning(base / GENERATION_FILE)
    ends = _config_ends(tuned)
    strange = [end for end in ends if end not in _config_ends(base)]
    if not strange:
        return read_bytes(file) if changed else None
    source = file if file.is_file() else base / GENERATION_FILE
    values = read_json(source) if source.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a JSON object, found {type(values).__name__}")
    named = _as_list(values.get("eos_token_id")) if file.is_file() else []
    if set(ends) <= set(named):
        return read_bytes(file) if changed else None
    every = [*named, *(end for end in ends if end not in named)]
    return _json_bytes({**values, "eos_token_id": every[0] if len(every) == 1 else every})


def _config_ends(folder: Path) -> list[Any]:
    """The end tokens that config.json names; none for a folder without one (an adapter)."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        return []
    inner = config.get("text_config")
    return [
        *_as_list(config.get("eos_token_id")), *_as_list(inner.get("eos_token_id") if isinstance(inner, dict) else None)
    ]  # fmt: skip


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


# -- in few bytes ------------------------------------------------------------------------------------------------------


def compact(carried: Carried, base: Path) -> Carried:
    """The same files, stored against those of ``base``: what means the same there is named, not stored."""
    files: dict[str, bytes] = {}
    from_base: dict[str, str] = {}
    for name, data in carried.files.items():
        ours = base / name
        values = _parsed(data, name) if name.endswith(".json") else None
        if name in VOCABULARY_FILES and ours.is_file():
            changes = _changes(ours, values) if name == "tokenizer.json" and isinstance(values, dict) else None
            if (changes is None and read_bytes(ours) == data) or changes == {}:
                from_base[name] = meaning_digest(ours)
                continue
            if changes is not None and "model" not in changes:
                from_base[name] = meaning_digest(ours)
                files[CHANGES_FILE] = _json_bytes(changes)
                continue
        files[name] = data if values is None else _json_bytes(values)
    return Carried(files, from_base)


def meaning_digest(file: Path) -> str:
    """A digest of what a file of the base means, the same however its JSON is laid out."""
    meaning = _meaning(file)
    return hashlib.sha256(meaning).hexdigest()[:16] if isinstance(meaning, bytes) else digest(meaning)


def write_carried(carried: Carried, base: Path, out: Path) -> list[str]:
    """Write the files, whole again, into the folder ``out``; return their names.

    Raises :class:`UserError` where ``base`` does not have the file that the carried ones were stored against.
    """
    check_from_base(carried, base)
    written: dict[str, bytes] = {name: data for name, data in carried.files.items() if name != CHANGES_FILE}
    for name in carried.from_base:
        ours = base / name
        written[name] = read_bytes(ours)
        if name == "tokenizer.json" and CHANGES_FILE in carried.files:
            written[name] = _json_bytes({**read_json(ours), **_parsed(carried.files[CHANGES_FILE], CHANGES_FILE)})
    for name, data in written.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return list(written)


def check_from_base(carried: Carried, base: Path) -> None:
    """Raise :class:`UserError` unless ``base`` has the files that the carried ones were stored against."""
    for name, expected in carried.from_base.items():
        found = meaning_digest(base / name) if (base / name).is_file() else None
        if found != expected:
            state = "has no" if found is None else "says something else in its"
            raise UserError(
                f"{base} {state} {name}, and the tokenizer that travels here was stored against the base's: open the "
                f"base with the tokenizer that it had then"
            )


def _changes(base: Path, tuned: dict[str, Any]) -> dict[str, Any] | None:
    """The top-level keys of ``tokenizer.json`` whose values differ from the base's; None where a key went away."""
    ours, theirs = _meaning(base), _meant(base.name, tuned)
    if not isinstance(ours, dict) or set(ours) - set(theirs):
        return None
    return {key: tuned[key] for key, value in theirs.items() if key not in ours or ours[key] != value}


def _parsed(data: bytes, name: str) -> Any:
    return parse_json(data.decode("utf-8-sig"), name)


def _json_bytes(values: Any) -> bytes:
    return (json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


# -- in a folder -------------------------------------------------------------------------------------------------------


def save_files(carried: Carried, folder: Path) -> dict[str, str]:
    """Write the files below ``folder / "files"``; return their SHA-256 by the name a card gives them."""
    hashes = {}
    for name, data in carried.files.items():
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        hashes[f"{FOLDER}/{name}"] = sha256_file(path)
    return hashes


def read_files(reader: Folder, hashes: Mapping[str, str], from_base: Mapping[str, str]) -> Carried:
    """The carried files of an artefact, whose card names ``hashes`` (of all its files).

    Raises :class:`UserError` for a file that is missing, damaged, no regular file, not on the list of those that may
    travel, or that brings code.
    """
    files = {}
    for key, expected in hashes.items():
        if not key.startswith(f"{FOLDER}/"):
            continue
        name = key.removeprefix(f"{FOLDER}/")
        if not may_travel(name):
            raise UserError(
                f"{reader.path}: '{key}' may not travel with it: only the files of a tokenizer, chat templates and "
                f"{GENERATION_FILE} do. {reader.fix}"
            )
        path = reader.matches(key, expected)
        _check_content(path, reader.fix)
        files[name] = read_bytes(path)
    for name in from_base:
        if name not in VOCABULARY_FILES:
            raise UserError(f"{reader.path}: '{name}' is no file that a tokenizer may take from the base. {reader.fix}")
    return Carried(files, dict(from_base))


def _check_content(file: Path, fix: str) -> None:
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
