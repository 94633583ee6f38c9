"""Files that travel with a delta or a pack because tuning changed them: tokenizer, chat templates, generation config.

They lie in the subfolder ``files/``, and only the names of one closed list are allowed (:func:`may_travel`). A pack
stores them relative to the files of its base (:func:`compact`): an unchanged vocabulary takes no bytes, and of a
``tokenizer.json`` with added tokens only the keys that differ are stored (``tokenizer.changes.json``).
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
from skillweave.files.hashes import digest
from skillweave.files.parse_json import parse_json
from skillweave.files.read import decode_text, read_bytes, read_json

FOLDER = "files"
"""The subfolder of a delta or a pack for these files."""
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""The files that hold the tokens. The other files of a tokenizer are small."""
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
PARTS = tuple(
    f"{FOLDER}/{name}" for name in (*TOKENIZER_FILES, GENERATION_FILE, CHANGES_FILE, f"{TEMPLATES_FOLDER}/*.jinja")
)
"""Paths of all carried files that a delta or a pack may have."""
_TEMPLATE = re.compile(rf"{TEMPLATES_FOLDER}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}}\.jinja")
# Keys by which transformers finds Python code, or another file, in a folder.
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
    """Whether a file of this name, relative to ``files/``, is allowed there."""
    return name in (*TOKENIZER_FILES, GENERATION_FILE, CHANGES_FILE) or bool(_TEMPLATE.fullmatch(name))


@dataclass(frozen=True)
class Carried:
    """The files of a fine-tune that replace those of its base.

    ``files`` maps names to bytes. A tokenizer consists of several files: if one of them is here, then no file of the
    base's tokenizer is used, except those in ``from_base`` (name -> digest of its meaning, see :func:`meaning_digest`).
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    from_base: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.files or self.from_base)

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(map(len, self.files.values()))

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer is among the files (a chat template is part of one)."""
        return bool(self.from_base) or any(name != GENERATION_FILE for name in self.files)


@dataclass(frozen=True)
class _File:
    """A file that was read once: its bytes, and its path for messages."""

    path: Path
    data: bytes

    @classmethod
    def at(cls, path: Path) -> _File | None:
        """The file at ``path``; None if there is none."""
        return cls(path, read_bytes(path)) if path.is_file() else None

    def text(self) -> str:
        return decode_text(self.data, self.path)

    def json(self) -> Any:
        return parse_json(self.text(), str(self.path))

    def meaning(self) -> Any:
        """What the file says, without bookkeeping and, for a tokenizer's config, without chat templates."""
        return _meaning_of_values(self.path.name, self.json()) if self.path.suffix == ".json" else self.data


# -- what a fine-tune changes ------------------------------------------------------------------------------------------


def changed_files(base: Path, tuned: Path) -> Carried:
    """The files of the folder ``tuned`` that must replace those of ``base``.

    - All files of the tokenizer travel, or none: none if ``tuned`` has no tokenizer, or if the two mean the same.
    - JSON files are compared by value, ignoring bookkeeping fields such as ``transformers_version``. Chat templates
      are compared wherever they are written.
    - A folder with parts of a tokenizer but no vocabulary (only a chat template) takes the vocabulary of ``base``.
    - End tokens that only ``config.json`` of ``tuned`` names are written into the generation config.
    """
    files: dict[str, bytes] = {}
    ours, theirs = _tokenizer_files(base), _tokenizer_files(tuned)
    if theirs and not set(theirs) & set(VOCABULARY_FILES):
        theirs = {**{name: file for name, file in ours.items() if name in VOCABULARY_FILES}, **theirs}
    if theirs and (
        any(_differs(file, ours.get(name)) for name, file in theirs.items() if not _is_template(name))
        or _templates(theirs) != _templates(ours)
    ):
        files |= {name: file.data for name, file in theirs.items()}
    generation = _generation(base, tuned)
    if generation is not None:
        files[GENERATION_FILE] = generation
    return Carried(files)


def _tokenizer_files(folder: Path) -> dict[str, _File]:
    templates = sorted((folder / TEMPLATES_FOLDER).glob("*.jinja")) if (folder / TEMPLATES_FOLDER).is_dir() else []
    names = [*TOKENIZER_FILES, *(f"{TEMPLATES_FOLDER}/{file.name}" for file in templates)]
    paths = {name: folder / name for name in names if may_travel(name) and (folder / name).is_file()}
    for path in paths.values():
        check_regular(path, folder)
    return {name: _File(path, read_bytes(path)) for name, path in paths.items()}


def _is_template(name: str) -> bool:
    return name.endswith(".jinja")


def _differs(file: _File, other: _File | None) -> bool:
    return other is None or (file.data != other.data and file.meaning() != other.meaning())


def _templates(files: Mapping[str, _File]) -> dict[str, str]:
    """Chat templates by name, wherever they are written; a template's own file overrides ``tokenizer_config.json``."""
    templates: dict[str, str] = {}
    config = files["tokenizer_config.json"].json() if "tokenizer_config.json" in files else {}
    given = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        templates |= {str(one.get("name")): str(one.get("template")) for one in given if isinstance(one, dict)}
    for name, file in files.items():
        if _is_template(name):
            templates["default" if name == TEMPLATE_FILE else Path(name).stem] = file.text()
    return templates


def _meaning_of_values(name: str, values: Any) -> Any:
    if not isinstance(values, dict) or name not in _WITH_BOOKKEEPING:
        return values
    values = {key: value for key, value in values.items() if key not in _BOOKKEEPING}
    if name == "tokenizer_config.json":
        values.pop("chat_template", None)
    return _with_merge_pairs(values) if name == "tokenizer.json" else values


def _with_merge_pairs(values: dict[str, Any]) -> dict[str, Any]:
    """The values of ``tokenizer.json`` with merges as pairs: older files have "a b" for ["a", "b"]."""
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        return values
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    set_values = {key: value for key, value in model.items() if value not in (None, False)}
    return {**values, "model": {**set_values, "merges": pairs}}


def _generation(base: Path, tuned: Path) -> bytes | None:
    """The tuned generation config if it means something else than the base's, else None."""
    if (tuned / GENERATION_FILE).is_file():
        check_regular(tuned / GENERATION_FILE, tuned)
    ours, theirs = _File.at(base / GENERATION_FILE), _File.at(tuned / GENERATION_FILE)
    changed = theirs.data if theirs is not None and _differs(theirs, ours) else None
    ends = _config_ends(tuned)
    base_ends = _config_ends(base)
    if all(end in base_ends for end in ends):
        return changed
    source = theirs or ours
    values = source.json() if source is not None else {}
    if not isinstance(values, dict):
        assert source is not None
        raise UserError(f"{source.path}: expected a JSON object, found {type(values).__name__}")
    named = _as_list(values.get("eos_token_id")) if theirs is not None else []
    if set(ends) <= set(named):
        return changed
    every = [*named, *(end for end in ends if end not in named)]
    return _json_bytes({**values, "eos_token_id": every[0] if len(every) == 1 else every})


def _config_ends(folder: Path) -> list[Any]:
    """The end tokens that ``config.json`` names; none for a folder without one (an adapter)."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        return []
    inner = config.get("text_config")
    inner_ends = inner.get("eos_token_id") if isinstance(inner, dict) else None
    return [*_as_list(config.get("eos_token_id")), *_as_list(inner_ends)]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


# -- in few bytes ------------------------------------------------------------------------------------------------------


def compact(carried: Carried, base: Path) -> Carried:
    """The same files, stored relative to those of ``base``: a file that means the same there is named, not stored."""
    files: dict[str, bytes] = {}
    from_base: dict[str, str] = {}
    for name, data in carried.files.items():
        ours = _File.at(base / name) if name in VOCABULARY_FILES else None
        values = _parsed(data, name) if name.endswith(".json") else None
        if ours is not None:
            changes = _changes(ours, values) if name == "tokenizer.json" and isinstance(values, dict) else None
            if (changes is None and ours.data == data) or changes == {}:
                from_base[name] = meaning_digest(ours.meaning())
                continue
            if changes is not None and "model" not in changes:
                from_base[name] = meaning_digest(ours.meaning())
                files[CHANGES_FILE] = _json_bytes(changes)
                continue
        files[name] = data if values is None else _json_bytes(values)
    return Carried(files, from_base)


def meaning_digest(meaning: Any) -> str:
    """A digest of what a file means (bytes, or the values of a JSON file without bookkeeping), whatever its layout."""
    return hashlib.sha256(meaning).hexdigest()[:16] if isinstance(meaning, bytes) else digest(meaning)


def write_carried(carried: Carried, base: Path, out: Path) -> list[str]:
    """Write the complete files into the folder ``out``; return their names.

    Raises :class:`UserError` if ``base`` does not have a file that the carried ones were stored relative to.
    """
    written: dict[str, bytes] = {name: data for name, data in carried.files.items() if name != CHANGES_FILE}
    for name, ours in _files_from_base(carried, base).items():
        written[name] = ours.data
        if name == "tokenizer.json" and CHANGES_FILE in carried.files:
            written[name] = _json_bytes({**ours.json(), **_parsed(carried.files[CHANGES_FILE], CHANGES_FILE)})
    for name, data in written.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return list(written)


def check_from_base(carried: Carried, base: Path) -> None:
    """Raise :class:`UserError` unless ``base`` has the files that the carried ones were stored relative to."""
    _files_from_base(carried, base)


def _files_from_base(carried: Carried, base: Path) -> dict[str, _File]:
    files = {}
    for name, expected in carried.from_base.items():
        ours = _File.at(base / name)
        if ours is None or meaning_digest(ours.meaning()) != expected:
            state = "has no" if ours is None else "says something else in its"
            raise UserError(
                f"{base} {state} {name}, and the tokenizer that travels here was stored against the base's: open the "
                f"base with the tokenizer that it had then"
            )
        files[name] = ours
    return files


def _changes(base: _File, tuned: dict[str, Any]) -> dict[str, Any] | None:
    """The top-level keys of ``tokenizer.json`` whose values differ from the base's; None if a key was removed."""
    ours, theirs = base.meaning(), _meaning_of_values(base.path.name, tuned)
    if not isinstance(ours, dict) or set(ours) - set(theirs):
        return None
    return {key: tuned[key] for key, value in theirs.items() if key not in ours or ours[key] != value}


def _parsed(data: bytes, name: str) -> Any:
    return parse_json(data.decode("utf-8-sig"), name)


def _json_bytes(values: Any) -> bytes:
    return (json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


# -- in a folder -------------------------------------------------------------------------------------------------------


def save_files(carried: Carried, folder: Path) -> dict[str, str]:
    """Write the files below ``folder / "files"``; return their SHA-256 under the names that a card uses."""
    hashes = {}
    for name, data in carried.files.items():
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        hashes[f"{FOLDER}/{name}"] = hashlib.sha256(data).hexdigest()
    return hashes


def read_files(reader: Folder, hashes: Mapping[str, str], from_base: Mapping[str, str]) -> Carried:
    """The carried files of an artefact, whose card names ``hashes`` (of all its files). Each file is read once.

    Raises :class:`UserError` for a file that is missing, damaged, not a regular file, not on the list of those that
    may travel, or that names code.
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
        files[name] = reader.read(key, expected)
        _check_content(_File(reader.path / key, files[name]), reader.fix)
    for name in from_base:
        if name not in VOCABULARY_FILES:
            raise UserError(
                f"{reader.path}: '{name}' is not a file that a tokenizer may take from the base. {reader.fix}"
            )
    return Carried(files, dict(from_base))


def _check_content(file: _File, fix: str) -> None:
    """Raise :class:`UserError` unless a carried file is text, or a JSON object that names no code."""
    if file.path.suffix == ".model":
        return  # a vocabulary of sentencepiece, which is binary
    if file.path.suffix != ".json":
        file.text()
        return
    values = file.json()
    if not isinstance(values, dict):
        raise UserError(f"{file.path}: expected an object with keys, found {type(values).__name__}. {fix}")
    for key in _CODE:
        if values.get(key):
            raise UserError(f"{file.path}: '{key}' names code. Code that comes with a folder is never run. {fix}")
