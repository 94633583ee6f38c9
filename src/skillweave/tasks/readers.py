"""Rows of data files in the usual formats, one at a time, each with its place in the file."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skillweave.errors import UserError, nearest, shown_value
from skillweave.files.parse_json import check_characters, parse_json
from skillweave.files.read import is_file, is_folder, open_file, split_lines, wide_text
from skillweave.progress import say_once, share_of
from skillweave.units import human_bytes

if TYPE_CHECKING:
    import pyarrow

LocatedRow = tuple[str, Any]
"""The place of a row ("data.jsonl, line 3") and its value."""

_LARGEST = 2**33
"""The most bytes of a data file, after decompression."""
_GZIP = b"\x1f\x8b\x08"  # how a packed file begins
_LONGEST_LINE = 2**26
"""The most bytes of a line."""
_MOST_PACKED = 200
"""How many times larger than a ``.gz`` file its text may be. JSON of texts is usually 3 to 20 times larger."""
_ROWS_AT_ONCE = 1024
"""Rows of a Parquet file that are read at once."""

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
_WRAPPERS = (
    "data",
    "rows",
    "train",
    "test",
    "validation",
    "examples",
    "samples",
    "records",
    "items",
    "instances",
    "questions",
)
"""Keys under which an object that is a whole .json file usually holds its rows."""
_OF_ROWS = {*_LISTS, "question", "problem", "instruction", "query", "input", "output", "response", "text"}
"""Keys by which an object is seen to be a row, and not a file of rows."""


def read_rows(path: Path) -> Iterator[LocatedRow]:
    """The rows of a data file. The ending of its name says how to read it (:data:`ENDINGS`); the default is JSONL.

    Raises :class:`UserError` with file and line if something cannot be read.
    """
    name = path.name.lower()
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), ".jsonl")
    return ENDINGS[ending](path)


def read_jsonl(path: Path) -> Iterator[LocatedRow]:
    """The rows of a JSONL file, read line by line; blank lines are skipped."""
    with _lines(path) as lines:
        yield from _json_lines(path, lines)


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[LocatedRow]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line, where)
        except UserError as error:
            if number == 1 and isinstance(error.__cause__, json.JSONDecodeError):
                hint = "JSONL holds one object a line (an array of rows is a .json file)"
                raise UserError(f"{error}; {hint}") from error
            raise
        if isinstance(row, list):
            raise UserError(
                f"{where}: expected an object with keys, found list {shown_value(row)}; a file that is one list of "
                "rows is named .json"
            )
        yield where, row


def _read_json(path: Path) -> Iterator[LocatedRow]:
    """The rows of one JSON array, which may be the value of a usual key of one object, as in ``{"data": [...]}``.

    Any other file that begins with an object is read as JSONL, which is often named .json.
    """
    with _lines(path) as lines:
        text = "".join(lines)
    if text.lstrip().startswith("["):
        rows, place = parse_json(text, str(path), characters=False), str(path)
    elif (found := _wrapped(path, text)) is not None:
        (key, rows), place = found, f"{path}, '{found[0]}'"
        say_once(f"{path}: one object, of which only the list of rows in '{key}' is read")
    else:
        yield from _json_lines(path, io.StringIO(text))
        return
    for number, row in enumerate(rows, 1):
        where = f"{place}, row {number}"
        yield where, check_characters(row, where)


def _read_separated(path: Path, delimiter: str) -> Iterator[LocatedRow]:
    """The rows of a table with a header. Each cell is a text as it is; the key of an empty cell has no value."""
    csv.field_size_limit(_LONGEST_LINE)
    with _lines(path, newline="") as lines:
        reader, start = csv.DictReader(lines, delimiter=delimiter, strict=True), 1
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


def _read_parquet(path: Path) -> Iterator[LocatedRow]:
    import pyarrow  # imported here: it takes half a second, and most tasks do not need it
    import pyarrow.parquet

    number = 0
    try:
        with _open(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            _check_header(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                if batch.nbytes > _LARGEST:
                    raise UserError(f"{path}: {_ROWS_AT_ONCE} rows take more than {human_bytes(_LARGEST)}")
                batch.validate(full=True)
                short = _short_floats(batch.schema)
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}, row {number}"
                    row |= {name: _as_written(row[name], kind) for name, kind in short.items()}
                    yield where, check_characters(_without_nulls(row), where)
            if number != file.metadata.num_rows:
                raise ValueError(f"its columns end there, and it says that it has {file.metadata.num_rows} rows")
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError, TypeError) as error:
        # A damaged file fails checks of several libraries, each with its own errors; here they all mean the same.
        raise UserError(f"{path}: not a Parquet file that can be read, after row {number} ({error})") from error


def read_dataset(path: str, split: str, subset: str | None) -> Iterator[LocatedRow]:
    """The rows of a Hugging Face dataset: of the folder ``path`` if it exists, else of the hub.

    A column of class labels gives the names of the labels.
    """
    if is_file(path):
        raise UserError(f"{path} is a file, not a dataset: name it without 'dataset:' (source: file)")
    if not is_folder(path) and path.startswith((".", "/", "~")):
        raise UserError(f"{path} does not exist: name a folder written by save_to_disk, or a hub id (owner/name)")
    import datasets  # imported here: it takes seconds, and most tasks do not need it

    if is_folder(path):
        try:
            loaded = datasets.load_from_disk(path)
        except Exception as error:  # any folder may be given, and two libraries read it, each with its own errors
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
    short = _short_floats(loaded.features.arrow_schema)
    labels = {name: kind for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}
    for number, row in enumerate(loaded, 1):
        for name, kind in labels.items():
            labelled = row[name] is not None and row[name] >= 0  # -1 means an unknown label
            row[name] = kind.int2str(row[name]) if labelled else None
        row |= {name: _as_written(row[name], kind) for name, kind in short.items()}
        yield f"{path}, row {number}", _without_nulls(row)


def _wrapped(path: Path, text: str) -> tuple[str, list[Any]] | None:
    """The key and the rows of a file that is one object with a list of rows; None if it is JSONL or damaged.

    Raises :class:`UserError` for one object that spans lines, or whose rows are not where they usually are.
    """
    try:
        whole = parse_json(text, str(path), characters=False)
    except UserError:
        return None  # one object a line, or damaged: the line reader reports the place
    if not isinstance(whole, dict):
        return None
    if (key := wrapper_of(whole)) is not None:
        return key, whole[key]
    inner = [repr(key) for key, value in whole.items() if _is_rows(value) and value and key not in _LISTS]
    if inner:
        are = f"{inner[0]} is a list" if len(inner) == 1 else f"{', '.join(inner[:5])} are lists"
        raise UserError(
            f"{path}: one object, whose {are} of rows: write the list that you mean alone into a file, as "
            "[{...}, {...}]"
        )
    if "\n" in text.strip():
        raise UserError(f"{path}: one object; a .json file must be an array of rows, as [{{...}}, {{...}}]")
    return None


def wrapper_of(value: Any) -> str | None:
    """The key under which an object holds the rows of a file; None if it has no such key, or two, or is a row."""
    if not isinstance(value, dict) or value.keys() & _OF_ROWS:
        return None
    lists = [key for key, inner in value.items() if _is_rows(inner)]
    keys = [key for key in lists if value[key]] or lists  # an empty list beside the rows is none of rows
    return keys[0] if len(keys) == 1 and keys[0] in _WRAPPERS else None


def wrapper_hint(row: Any) -> str:
    """What to add to an error about a row that has no prompt and holds a list of rows; empty for other rows."""
    key = wrapper_of(row)
    return "" if key is None else f"; its '{key}' is a list of rows: a .json file with this one object is read"


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


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


def _without_nulls(value: Any) -> Any:
    """The value without keys whose value is None: a table gives each object the keys of all others in its column."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _short_floats(schema: pyarrow.Schema) -> dict[str, pyarrow.DataType]:
    """The columns that may hold floats of 32 or 16 bits, with their types: most files have none."""
    return {one.name: one.type for one in schema if "float" in str(one.type)}


def _as_written(value: Any, kind: pyarrow.DataType) -> Any:
    """The value of a column of this type, with floats of 32 or 16 bits as the shortest decimals that give them.

    A column of 32 bits holds 0.1 as 0.10000000149011612, which no answer would match, and which nobody wrote.
    """
    inner_kind = getattr(kind, "value_type", None)  # of a list, or of a dictionary-encoded column
    if isinstance(value, list) and inner_kind is not None:
        return [_as_written(inner, inner_kind) for inner in value]
    if isinstance(value, dict) and hasattr(kind, "get_field_index"):
        return {key: _as_written(inner, kind.field(key).type) for key, inner in value.items()}
    short = {"float": np.float32, "halffloat": np.float16}.get(str(inner_kind or kind))
    return float(str(short(value))) if isinstance(value, float) and short is not None else value


def say_unread_keys(source: str | Path, counts: Mapping[str, int], rows: int) -> None:
    """Say once which keys of a file's rows mean nothing to their reader, with the share of the rows that have them."""
    if counts:
        keys = ", ".join(f"'{key}'" for key in sorted(counts)[:5])
        say_once(
            f"{source}: {share_of(max(counts.values()), rows, 'rows')} have keys that are not read, such as {keys}"
        )


@contextlib.contextmanager
def _lines(path: Path, newline: str | None = None) -> Iterator[Iterator[str]]:
    """The lines of a text file, each with its line break. A file that ends with ``.gz`` is decompressed."""
    with contextlib.closing(raw_lines(path)) as lines:
        texts = (decoded_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1))
        # Python's own reader turns the line break into the one that is asked for.
        yield (io.StringIO(text, newline=newline).getvalue() for text in texts)


def raw_lines(path: Path) -> Generator[bytes, None, None]:
    """The lines of a text file as bytes, each with its line break. A file that ends with ``.gz`` is decompressed.

    Raises :class:`UserError` for a line or file that is too long, or that begins as UTF-16 does.
    """
    with _open(path) as opened:
        packed = path.name.lower().endswith(".gz")
        size = os.fstat(opened.fileno()).st_size
        most = min(_LARGEST, _MOST_PACKED * size + _LONGEST_LINE) if packed else _LARGEST
        file = gzip.GzipFile(fileobj=opened) if packed else opened
        lines, read = split_lines(file, _LONGEST_LINE), 0
        for number in itertools.count(1):
            where = f"{path}, line {number}"
            try:
                line = next(lines, b"")
            except (OSError, EOFError, zlib.error) as error:
                plain = "; it is not packed: remove .gz from its name" if isinstance(error, gzip.BadGzipFile) else ""
                raise UserError(f"{path}: could not be read after line {number - 1} ({error}){plain}") from error
            if not line:
                return
            read += len(line)
            if len(line) > _LONGEST_LINE:
                raise UserError(
                    f"{where}: the line is longer than {human_bytes(_LONGEST_LINE)}, which is the most that is read"
                )
            if read > most:
                raise UserError(
                    f"{where}: up to here the file holds more than {human_bytes(most)}, which is the most that is "
                    "read: split it, or choose fewer rows"
                )
            if number == 1:
                if not packed and line.startswith(_GZIP):
                    raise UserError(f"{path}: it is packed with gzip: give it a name that ends with .gz")
                if wide := wide_text(line):
                    raise UserError(f"{path}: {wide}")
                line = line.removeprefix(codecs.BOM_UTF8)
            yield line


def decoded_line(line: bytes, where: str) -> str:
    """The text of a line. Raises :class:`UserError` if it is not UTF-8 text."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start} of the line): save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise UserError(f"{where}: a NUL character stands there, so this is not UTF-8 text: save the file as UTF-8")
    return text


def _open(path: Path) -> io.BufferedReader:
    if is_folder(path):
        raise UserError(f"{path} is a folder: name a data file, or use source: dataset for a saved dataset")
    return open_file(path, f"a data file (looked in {Path.cwd()})")


ENDINGS: dict[str, Callable[[Path], Iterator[LocatedRow]]] = {
    ending + packed: reader
    for ending, reader in {
        ".jsonl": read_jsonl,
        ".json": _read_json,
        ".csv": lambda path: _read_separated(path, ","),
        ".tsv": lambda path: _read_separated(path, "\t"),
    }.items()
    for packed in ("", ".gz")
} | {".parquet": _read_parquet}
"""Ending of a file's name -> the function that reads its rows."""
