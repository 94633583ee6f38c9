"""Rows of data files in the usual formats, one at a time, each with the place where it stands."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from skillweave.errors import UserError, nearest

Row = tuple[str, Any]
"""Where a row stands ("data.jsonl, line 3") and what was read there."""

_LONGEST_CELL = 2**31 - 1

_LISTS = (
    "messages",
    "conversations",
    "tools",
    "history",
    "answer",
    "cases",
    "chosen",
    "rejected",
    "prompt",
    "completion",
)
"""Keys of a row whose values may be lists of objects."""


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a data file by the ending of its name (:data:`ENDINGS`); any other is read as JSONL.

    Raises :class:`UserError` with file and line for what cannot be read.
    """
    name = path.name.lower()
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), ".jsonl")
    return ENDINGS[ending](path)


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, read line by line; blank lines are passed over."""
    with _opened(path) as file:
        yield from _json_lines(path, file)


def _json_lines(path: Path, file: TextIO) -> Iterator[Row]:
    number = 0
    try:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                row = _loads(line, where)
                if isinstance(row, list):
                    raise UserError(
                        f"{where}: expected an object with keys, found list {json.dumps(row)[:40]}; a file that is one "
                        "list of rows is named .json"
                    )
                yield where, check_characters(row, where) if _may_be_cut(line) else row
    except json.JSONDecodeError as error:
        hint = "" if number > 1 else "; JSONL holds one object a line (an array of rows is a .json file)"
        raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}){hint}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list ...
        raise UserError(f"{path}, line {number}: this JSON cannot be read ({error})") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: could not be read after line {number} ({error})") from error


def _read_json(path: Path) -> Iterator[Row]:
    """The rows of one JSON array; a file that begins with an object is read as JSONL, which many call .json."""
    with _opened(path) as file:
        try:
            text = file.read()
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: could not be read ({error})") from error
    if not text.lstrip().startswith("["):
        _check_no_wrapper(path, text)
        yield from _json_lines(path, io.StringIO(text))
        return
    try:
        rows = _loads(text, str(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: this JSON cannot be read ({error})") from error
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        yield where, check_characters(row, where)


def _read_separated(path: Path, delimiter: str) -> Iterator[Row]:
    """The rows of a table with a header; every cell is a text as it stands, an empty one is absent."""
    csv.field_size_limit(_LONGEST_CELL)
    with _opened(path, newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            header = reader.fieldnames or []
            _check_header(header, f"{path}, line 1")
            other = next((mark for mark in ",;\t|" if len(header) == 1 and mark in header[0]), None)
            if other is not None:
                raise UserError(
                    f"{path}, line 1: the header is one column, {header[0]!r:.60}, that holds {other!r}: cells must be "
                    "separated by commas in a .csv file and by tabs in a .tsv file"
                )
            start = reader.line_num + 1
            for row in reader:
                where, start = f"{path}, line {start}", reader.line_num + 1
                if None in row or None in row.values():
                    raise UserError(
                        f"{where}: the row has another number of cells than the header has columns ({len(header)}): "
                        'put cells that hold the separator or a line break in quotes ("...")'
                    )
                yield where, {key: value or None for key, value in row.items()}
        except csv.Error as error:
            raise UserError(f"{path}, line {start}: the row that begins here is not valid CSV ({error})") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: could not be read after line {reader.line_num} ({error})") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # half a second to import, and most tasks do without it
    import pyarrow.parquet

    _check_file(path)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_header(file.schema_arrow.names, str(path))
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", _without_nulls(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read, after row {number} ({error})") from error


def read_dataset(path: str, split: str, subset: str | None) -> Iterator[Row]:
    """The rows of a Hugging Face dataset: of a folder where there is one of that name, else of the hub.

    A column of class labels gives the labels' names.
    """
    if Path(path).is_file():
        raise UserError(f"{path} is a file, not a dataset: name it without 'dataset:' (source: file)")
    if not Path(path).exists() and path.startswith((".", "/", "~")):
        raise UserError(f"{path} does not exist: name a folder written by save_to_disk, or a hub id (owner/name)")
    import datasets  # seconds to import, and most tasks do without it

    if Path(path).is_dir():
        try:
            loaded = datasets.load_from_disk(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is no dataset folder: write one with dataset.save_to_disk ({error})") from error
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise UserError(f"{path} has no split '{split}'; {nearest(split, loaded)}")
            loaded = loaded[split]
    else:
        try:
            loaded = datasets.load_dataset(path, subset, split=split)
        except (OSError, ValueError) as error:
            raise UserError(
                f"could not load dataset '{path}' (split '{split}'): {error}. It is no folder here; "
                "for a hub dataset check its id, split and the network"
            ) from error
    labels = {name: kind for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}
    for number, row in enumerate(loaded, 1):
        for name, kind in labels.items():
            known = row[name] is not None and row[name] >= 0  # -1 stands for a label that is not known
            row[name] = kind.int2str(row[name]) if known else None
        yield f"{path}, row {number}", _without_nulls(row)


def check_characters(value: Any, where: str) -> Any:
    """``value``, a JSON value, as it is. Half a character in a text or a key of it is a :class:`UserError`.

    JSON can say half of a character beyond the 16-bit range (a lone surrogate, as in a cut emoji), and no tokenizer
    and no file takes it.
    """
    for place, text in _texts(value, ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}:{ascii(place)[1:-1] or ' the row'} holds half a character, {text[error.start]!a} (often a "
                "cut emoji): write the whole character, or remove it"
            ) from None
    return value


def _loads(text: str, where: str) -> Any:
    """What the JSON text holds. A key that an object has twice is a :class:`UserError`: one would be dropped."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{where}: the key {twice!r:.60} stands twice in one object: remove one of them")
        return found

    return json.loads(text, object_pairs_hook=object_of)


def _check_no_wrapper(path: Path, text: str) -> None:
    """Raise :class:`UserError` where the whole file is one object that spans lines or holds a list of rows."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return  # one object a line, or damaged: the reader of lines says where
    if not isinstance(whole, dict):
        return
    inner = next((key for key, value in whole.items() if isinstance(value, list) and value and key not in _LISTS), None)
    if inner is not None and all(isinstance(row, dict) for row in whole[inner]):
        raise UserError(
            f"{path}: one object, whose '{inner}' is a list of rows: write that list alone, as [{{...}}, {{...}}]"
        )
    if "\n" in text.strip():
        raise UserError(f"{path}: one object; a .json file must be an array of rows, as [{{...}}, {{...}}]")


def _check_header(names: Sequence[str], where: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column {twice!r} stands twice in the header: rename one of them")
    padded = next((name for name in names if name != name.strip()), None)
    if padded is not None:
        raise UserError(
            f"{where}: the column {padded!r} begins or ends with white space: remove it in the header (and in the "
            "rows, where it would be a part of the cells)"
        )


def _not_utf8(path: Path) -> UserError:
    """An error that names the first line whose bytes are not UTF-8."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                found = f"{path}, line {number}: not UTF-8 text ({error.reason} at byte {error.start} of the line)"
                return UserError(f"{found}: save the file as UTF-8")
    return UserError(f"{path}: not UTF-8 text: save the file as UTF-8")


def _may_be_cut(line: str) -> bool:
    """Whether a line of decoded JSON may hold half a character: only an escape can say one."""
    return "\\ud" in line or "\\uD" in line


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, keys included, with the way to it."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{place} a key", str(key)
            yield from _texts(inner, f"{place} '{key}'")
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, place)


def _without_nulls(value: Any) -> Any:
    """The value without keys that hold nothing: a table gives every object the keys of all others in its column."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _opened(path: Path, newline: str | None = None) -> TextIO:
    _check_file(path)
    try:
        if path.name.lower().endswith(".gz"):
            return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
        return open(path, encoding="utf-8-sig", newline=newline)
    except OSError as error:
        raise UserError(f"{path}: could not be opened ({error.strerror or error})") from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a data file, or use source: dataset for a saved dataset")
    if not path.exists():
        raise UserError(f"{path} does not exist: name a data file (looked in {Path.cwd()})")


ENDINGS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ending + packed: reader
    for ending, reader in {
        ".jsonl": read_jsonl,
        ".json": _read_json,
        ".csv": lambda path: _read_separated(path, ","),
        ".tsv": lambda path: _read_separated(path, "\t"),
    }.items()
    for packed in ("", ".gz")
} | {".parquet": _read_parquet}
"""How each kind of data file is read, by the ending of its name."""
