"""Problems from files and generators: one JSONL form, ARC's JSON files, and three generators of reasoning-gym.

A row of the JSONL form is ``{"name", "family", "train": [{"input", "output"}], "test": [{"input", "output"}]}``, with
``idx`` in place of ``name`` as in the files that Qiu et al. (arXiv 2310.08559) published. Values are JSON, or texts.
"""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from skillweave.errors import UserError, nearest, shown_value
from skillweave.files.read import is_folder, read_json
from skillweave.progress import say_once, share_of
from skillweave.reason.generators import GENERATORS, generated_rows
from skillweave.reason.problem import ExamplePairs, HeldOut, IOPair, Problem, Value
from skillweave.tasks.readers import read_jsonl, say_unread_keys
from skillweave.tools.source import parse

ReadValues = Literal["auto", "text", "literal"]
"""How texts in a file are read: as they are (``text``), as Python literals such as ``"[1, 2]"`` (``literal``), or as
literals if every input and output of the whole file is one (``auto``)."""

_SOURCES = (
    "a .jsonl file (one problem a line), a .json file or a folder of .json files in the layout of ARC, or "
    "reasoning-gym:NAME?size=20&seed=1"
)
_KEYS = ("name", "idx", "family", "train", "test")


@dataclass(frozen=True)
class _Row:
    """One problem as it was read, before its texts are read as literals."""

    where: str
    name: str
    family: str
    train: tuple[IOPair, ...]
    test: tuple[IOPair, ...]


def load_problems(source: str, *, limit: int | None = None, values: ReadValues = "auto") -> list[Problem]:
    """The problems of a file, a folder or a generator; the first ``limit`` of them.

    - ``FILE.jsonl`` (or ``.jsonl.gz``): one problem a line
    - ``FILE.json``: a list of such rows; one ARC task; or a mapping from names to ARC tasks
    - a folder of ARC tasks, one ``NAME.json`` each; the name of a folder inside it becomes the family of its tasks
    - ``reasoning-gym:NAME?size=20&seed=1`` for ``list_functions``, ``acre`` and ``arc_1d``, with the generator's own
      settings as further keys

    A name that occurs again gets a number. Standard error says so, and what was left out or read in a special way.
    Raises :class:`UserError` with file and line for everything that is wrong, and for problems without test pairs.
    """
    rows = _as_literals(list(_rows(source)), source, values)
    if not rows:
        raise UserError(f"{source} holds no problem: name {_SOURCES}")
    _check_numbers(rows)
    rows = _with_own_names(rows, source)
    if limit is not None and limit < len(rows):
        say_once(f"{source}: only the first {share_of(limit, len(rows), 'problems')} are used")
        rows = rows[:limit]
    _say_repeats(rows, source)
    return [Problem(ExamplePairs(row.name, row.train, row.family), HeldOut(row.test)) for row in rows]


# -- the layouts -----------------------------------------------------------------------------------------------------


def _rows(source: str) -> Iterator[_Row]:
    kind, colon, rest = source.partition(":")
    if colon and kind == "reasoning-gym":
        for where, row in generated_rows(rest):
            yield _row(row, where, "")
    elif is_folder(source):
        yield from _folder(Path(source))
    elif source.lower().endswith(".json"):
        yield from _json(Path(source))
    elif source.lower().endswith((".jsonl", ".jsonl.gz")):
        yield from _located(read_jsonl(Path(source)), source)
    elif colon and kind in ("builtin", "dataset"):
        raise UserError(f"'{source}' is a task for training, not a file of problems: name {_SOURCES}")
    else:
        raise UserError(f"'{source}' names no problems: name {_SOURCES}; the generators are {', '.join(GENERATORS)}")


def _located(located: Iterable[tuple[str, Any]], source: str) -> Iterator[_Row]:
    """The rows of the JSONL form. Keys that mean nothing here are named once, with the share of rows that have them."""
    ignored, count = Counter[str](), 0
    for count, (where, row) in enumerate(located, 1):
        yield _row(row, where, f"{Path(source).stem}-{count}")
        ignored.update(row.keys() - _KEYS)
    say_unread_keys(source, ignored, count)


def _json(path: Path) -> Iterator[_Row]:
    value = read_json(path, "a file of problems")
    if isinstance(value, list):
        yield from _located(((f"{path}, row {number}", row) for number, row in enumerate(value, 1)), str(path))
    elif isinstance(value, dict) and isinstance(value.get("train"), list):
        yield _arc(value, str(path), path.stem, "")
    elif isinstance(value, dict) and all(isinstance(task, dict) for task in value.values()):
        for name, task in value.items():
            yield _arc(task, f"{path}, '{name}'", name, "")
    else:
        raise UserError(
            f"{path}: expected a task {{'train': [...], 'test': [...]}}, a mapping from names to such tasks, or a list "
            f"of problems; found {shown_value(value)}"
        )


def _folder(folder: Path) -> Iterator[_Row]:
    for path in sorted((*folder.glob("*.json"), *folder.glob("*/*.json"))):
        value = read_json(path, "a task of ARC")
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected a task {{'train': [...], 'test': [...]}}; found {shown_value(value)}")
        family = "" if path.parent == folder else path.parent.name
        yield _arc(value, str(path), path.stem, family)


def _arc(task: dict[str, Any], where: str, name: str, family: str) -> _Row:
    row = _row({"family": family, **task, "name": name}, where, name)
    for place, value in _values(row):
        if not _is_grid(value):
            raise UserError(
                f"{where}: {place} is no grid, that is a list of equally long rows of whole numbers; found "
                f"{shown_value(value)}. Problems with other values go into a .jsonl file"
            )
    return row


def _values(row: _Row) -> Iterator[tuple[str, Value]]:
    """Every input and output, each with its place in the problem."""
    for part, pairs in (("train", row.train), ("test", row.test)):
        for number, pair in enumerate(pairs, 1):
            yield f"the input of {part} pair {number}", pair.input
            yield f"the output of {part} pair {number}", pair.output


def _is_grid(value: Value) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(row, list) and len(row) == len(value[0]) for row in value)
        and all(type(cell) is int for row in value for cell in row)
    )


def _row(row: Any, where: str, default: str) -> _Row:
    """One problem, checked. ``default`` is its name if it has none."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with 'train' and 'test', found {shown_value(row)}")
    name = row.get("name", row.get("idx", default))
    family = row.get("family", "")
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        key = "name" if "name" in row else "idx"
        raise UserError(f"{where}: '{key}' must be a text or a whole number, not {shown_value(name)}")
    if not isinstance(family, str):
        raise UserError(f"{where}: 'family' must be a text, not {shown_value(family)}")
    return _Row(where, str(name), family, _pairs(row, "train", where), _pairs(row, "test", where))


def _pairs(row: dict[str, Any], part: str, where: str) -> tuple[IOPair, ...]:
    if part not in row:
        raise UserError(f"{where}: there is no '{part}'; {nearest(part, row)}")
    pairs = row[part]
    if not isinstance(pairs, list) or not pairs:
        pair = "{'input': ..., 'output': ...}"
        raise UserError(f"{where}: '{part}' must be a list of at least one {pair}, not {shown_value(pairs)}")
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, dict) or "input" not in pair:
            raise UserError(
                f"{where}: {part} pair {number} must be {{'input': ..., 'output': ...}}, not {shown_value(pair)}"
            )
        if "output" not in pair:
            hint = "; ARC's test outputs are in a second file (solutions): copy each beside its input"
            raise UserError(f"{where}: {part} pair {number} has no 'output'{hint if part == 'test' else ''}")
    return tuple(IOPair(pair["input"], pair["output"]) for pair in pairs)


# -- what is true of all of them -------------------------------------------------------------------------------------


def _check_numbers(rows: Sequence[_Row]) -> None:
    """Raise :class:`UserError` for NaN and infinities: JSON has none, and no search could compare them."""
    for row in rows:
        for place, value in _values(row):
            if not _is_finite(value):
                raise UserError(
                    f"{row.where}: {place} holds a number that is not finite; found {shown_value(value)}: write it as "
                    "a text, or remove the pair"
                )


def _is_finite(value: Value) -> bool:
    if isinstance(value, list):
        return all(map(_is_finite, value))
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


def _with_own_names(rows: Sequence[_Row], source: str) -> list[_Row]:
    """The rows with a number after each name that an earlier row has."""
    taken = {row.name for row in rows}
    counts: dict[str, int] = {}
    named = []
    for row in rows:
        name = row.name
        counts[row.name] = number = counts.get(row.name, 0) + 1
        while number > 1 and name in taken:
            name = f"{row.name}-{number}"
            counts[row.name] = number
            number += 1
        taken.add(name)
        named.append(replace(row, name=name))
    changed = sum(one.name != other.name for one, other in zip(rows, named, strict=True))
    if changed:
        share = share_of(changed, len(rows), "problems")
        say_once(f"{source}: {share} had the name of an earlier one and got a number after it")
    return named


def _as_literals(rows: list[_Row], source: str, values: ReadValues) -> list[_Row]:
    """The rows with their texts read as Python literals, if ``values`` says so."""
    if values == "text":
        return rows
    read = []
    for row in rows:
        try:
            read.append(replace(row, train=_literal_pairs(row.train), test=_literal_pairs(row.test)))
        except ValueError as error:
            if values == "auto":
                return rows
            raise UserError(f"{row.where}: an input or output {error}: read the texts as they are") from error
    if rows and values == "auto":
        say_once(f"{source}: every input and output is a text that holds a Python literal, and is read as one")
    return read


def _literal_pairs(pairs: Sequence[IOPair]) -> tuple[IOPair, ...]:
    return tuple(IOPair(_literal(pair.input), _literal(pair.output)) for pair in pairs)


def _literal(text: Value) -> Value:
    """The value of a text that is a Python literal of plain data. Raises ``ValueError``."""
    if not isinstance(text, str):
        raise ValueError(f"is no text but {shown_value(text)}")
    try:
        [statement] = parse(text.strip()).body
        return _plain(ast.literal_eval(statement.value if isinstance(statement, ast.Expr) else statement))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"is no Python literal of plain data: {shown_value(text)}") from None


def _plain(value: Any) -> Value:
    """The value with lists for tuples. Raises ``ValueError`` for what JSON does not have."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError


def _say_repeats(rows: Sequence[_Row], source: str) -> None:
    """Say how many test inputs are training inputs too: a table of the training pairs answers these."""
    repeated = total = 0
    for row in rows:
        known = {json.dumps(pair.input, sort_keys=True) for pair in row.train}
        repeated += sum(json.dumps(pair.input, sort_keys=True) in known for pair in row.test)
        total += len(row.test)
    if repeated:
        say_once(f"{source}: {share_of(repeated, total, 'test inputs')} are also training inputs of their problem")
