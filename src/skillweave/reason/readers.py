"""Read inductive problems: our JSONL, the layouts of public data sets, and generators of reasoning-gym."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from skillweave.errors import UserError, nearest, shown_value
from skillweave.files.hashes import digest
from skillweave.files.read import is_folder, read_json, read_json_lines
from skillweave.progress import say_once, share_of
from skillweave.reason.problem import ExamplePairs, HeldOut, IOPair, Problem, Value

_GYM = "reasoning-gym:"
_GYM_SIZE = 50
_LONGEST_LITERAL = 100_000
_DEEPEST = 50
_LAYOUT = '{"name": ..., "train": [{"input": ..., "output": ...}], "test": [...]}'

_Pairs = list[tuple[Value, Value]]


class _Read:
    """One problem as it was read: where it stands, its name and family, and its pairs."""

    def __init__(self, where: str, name: str, family: str, train: _Pairs, test: _Pairs) -> None:
        self.where, self.name, self.family, self.train, self.test = where, name, family, train, test


def load_problems(source: str, *, limit: int | None = None) -> list[Problem]:
    """The problems of a JSONL or JSON file, a folder of ARC tasks, or a generator of reasoning-gym.

    - JSONL: one problem in each line, with ``name`` or ``idx``, ``train``, ``test`` and perhaps ``family``. If all
      inputs and outputs of a file are texts that hold Python literals, they are read as values, and a note says so.
    - JSON: one ARC task, or a mapping of names to tasks; a folder has one task in each ``.json`` file
    - ``reasoning-gym:NAME?size=50&seed=0``, with ``list_functions``, ``acre`` or ``arc_1d``

    ``limit``: only so many, the first ones. Raises :class:`UserError` that names the file and line or key.
    """
    if source.startswith(_GYM):
        found = list(islice(_generated(source.removeprefix(_GYM)), limit))
    else:
        found = list(islice(_read(Path(source)), limit))
        found = _with_literals(found, source)
    if not found:
        raise UserError(f"{source} holds no problem: write one in each line: {_LAYOUT}")
    _say_overlap(found, source)
    return [
        Problem(
            ExamplePairs(name, tuple(IOPair(*pair) for pair in read.train), read.family),
            HeldOut([IOPair(*pair) for pair in read.test]),
        )
        for name, read in zip(_unique_names(found, source), found, strict=True)
    ]


def _read(path: Path) -> Iterator[_Read]:
    """The problems of a file or a folder."""
    if is_folder(path):
        files = sorted(path.glob("*.json"))
        if not files:
            raise UserError(f"{path} holds no .json file: name a folder of ARC tasks, or a file of problems")
        for file in files:
            yield _problem(read_json(file), str(file), file.stem)
    elif path.suffix == ".json":
        whole = read_json(path, "a file of problems")
        if isinstance(whole, dict) and "train" in whole:
            yield _problem(whole, str(path), path.stem)
        elif isinstance(whole, dict):
            for name, task in whole.items():
                yield _problem(task, f"{path}, key '{name}'", name)
        elif isinstance(whole, list):
            for number, task in enumerate(whole, 1):
                yield _problem(task, f"{path}, item {number}", f"{path.stem}-{number}")
        else:
            raise UserError(f"{path}: expected a task or a mapping of names to tasks, found {shown_value(whole)}")
    else:
        for number, (where, row) in enumerate(read_json_lines(path, "a file of problems"), 1):
            yield _problem(row, where, f"{path.stem}-{number}")


def _problem(row: Any, where: str, name: str) -> _Read:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a problem ({_LAYOUT}), found {shown_value(row)}")
    train, test = (_pairs(row, key, where) for key in ("train", "test"))
    given = row.get("name", row.get("idx"))
    family = row.get("family", "")
    if not isinstance(family, str):
        raise UserError(f"{where}: 'family' must be a text, not {shown_value(family)}")
    return _Read(where, name if given is None else str(given), family, train, test)


def _pairs(row: dict[str, Any], key: str, where: str) -> _Pairs:
    """The pairs under ``train`` or ``test``; at least one, each with input and output."""
    if key not in row:
        raise UserError(f"{where}: the key '{key}' is missing; {nearest(key, map(str, row))}")
    if not isinstance(row[key], list) or not row[key]:
        raise UserError(
            f'{where}: \'{key}\' must be a list of at least one pair {{"input": ..., "output": ...}}, not '
            f"{shown_value(row[key])}"
        )
    pairs = []
    for number, pair in enumerate(row[key], 1):
        place = f"{where}: pair {number} of '{key}'"
        if not isinstance(pair, dict) or "input" not in pair:
            raise UserError(f'{place} must be {{"input": ..., "output": ...}}, not {shown_value(pair)}')
        if "output" not in pair:
            more = " (ARC's challenges and solutions must be joined first)" if key == "test" else ""
            raise UserError(f"{place} has no 'output', so no answer could be graded{more}")
        _check(pair["input"], place, _DEEPEST)
        _check(pair["output"], place, _DEEPEST)
        pairs.append((pair["input"], pair["output"]))
    return pairs


def _check(value: Value, place: str, levels: int) -> None:
    """Raise :class:`UserError` for a value that no program could be compared with."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place} holds {value}, which equals nothing: write a finite number or null")
    if levels == 0:
        raise UserError(f"{place} is nested more than {_DEEPEST} levels deep: write a simpler value")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        _check(one, place, levels - 1)


def _with_literals(found: list[_Read], source: str) -> list[_Read]:
    """Read texts as values if all inputs and outputs of the file are texts that hold Python literals."""
    values = [value for read in found for pair in (*read.train, *read.test) for value in pair]
    if not values or not all(isinstance(value, str) for value in values):
        return found
    try:
        known = {value: _literal(value) for value in set(values)}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return found
    say_once(f"{source}: all inputs and outputs are texts of Python literals, such as {values[0]!r}: read as values")
    for read in found:
        read.train, read.test = ([(known[one], known[two]) for one, two in pairs] for pairs in (read.train, read.test))
    return found


def _literal(text: str) -> Value:
    """The value of a Python literal, if JSON has such values. Raises ``ValueError`` or ``SyntaxError``."""
    if len(text) > _LONGEST_LITERAL:
        raise ValueError("too long")
    value = ast.literal_eval(text.strip())
    return _as_json(value)


def _as_json(value: Any) -> Value:
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _as_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("no value of JSON")


def _unique_names(found: list[_Read], source: str) -> list[str]:
    """The names, with a number behind those that occur again; a note says how many do."""
    seen: Counter[str] = Counter()
    names = []
    for read in found:
        seen[read.name] += 1
        names.append(read.name if seen[read.name] == 1 else f"{read.name} ({seen[read.name]})")
    again = sum(count - 1 for count in seen.values())
    if again:
        say_once(f"{source}: {share_of(again, len(found), 'problems')} have the name of another: numbered")
    if len(set(names)) < len(names):
        raise UserError(f"{source}: problems have names that look numbered already: give each a name of its own")
    return names


def _say_overlap(found: list[_Read], source: str) -> None:
    """Say how many test inputs are training inputs of the same problem: they need no rule."""
    total = sum(len(read.test) for read in found)
    known = 0
    for read in found:
        shown = {digest(value) for value, _ in read.train}
        known += sum(digest(value) in shown for value, _ in read.test)
    if known:
        say_once(f"{source}: {share_of(known, total, 'test inputs')} are also training inputs of their problem")


# -- reasoning-gym ---------------------------------------------------------------------------------------------------


def _generated(reference: str) -> Iterator[_Read]:
    """The problems of ``NAME?size=50&seed=0``. Examples that cannot be read are left out, and a note says how many."""
    name, _, query = reference.partition("?")
    if name not in _GYM_READERS:
        raise UserError(f"{_GYM}{name}: no inductive problems are read from this; {nearest(name, _GYM_READERS)}")
    settings = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in settings.items():
        if key not in ("size", "seed"):
            raise UserError(f"{_GYM}{reference}: unknown setting '{key}'; {nearest(key, ('size', 'seed'))}")
        if not value.isdecimal() or (key == "size" and int(value) == 0):
            raise UserError(f"{_GYM}{reference}: {key} must be a whole number, not {value!r}")
    import reasoning_gym  # imported here: it takes seconds, and other problems do not need it

    size = int(settings.get("size", _GYM_SIZE))
    items = reasoning_gym.create_dataset(name, size=size, seed=int(settings.get("seed", 0)))
    unread = 0
    for number in range(size):
        try:
            train, test = _GYM_READERS[name](items[number])
            yield _Read(f"{_GYM}{name}, example {number}", f"{name}-{number}", name, train, test)
        except (ValueError, SyntaxError, KeyError, TypeError, IndexError):
            unread += 1
    if unread:
        say_once(f"{_GYM}{name}: {share_of(unread, size, 'examples')} could not be read as pairs and are left out")


def _list_functions(item: dict[str, Any]) -> tuple[_Pairs, _Pairs]:
    """``Input 1: [..]`` and ``Output 1: [..]`` in lines, then ``Input: [..]``."""
    inputs, outputs = [], []
    for line in item["question"].splitlines():
        head, _, rest = line.partition(":")
        if head.startswith("Input"):
            inputs.append(_literal(rest))
        elif head.startswith("Output") and rest.strip():
            outputs.append(_literal(rest))
    *shown, asked = inputs
    return list(zip(shown, outputs, strict=True)), [(asked, _literal(item["answer"]))]


def _acre(item: dict[str, Any]) -> tuple[_Pairs, _Pairs]:
    """``object, object → on`` in lines, then the objects of the test in the line after ``New test case:``."""
    lines = [line.strip() for line in item["question"].splitlines()]
    train: _Pairs = []
    for line in lines:
        objects, arrow, state = line.partition(" → ")
        if arrow:
            train.append((objects.split(", "), state))
    asked = lines[lines.index("New test case:") + 1].split(", ")
    if not train:
        raise ValueError("no results")
    return train, [(asked, item["answer"])]


def _arc_1d(item: dict[str, Any]) -> tuple[_Pairs, _Pairs]:
    metadata = item["metadata"]
    train = [(pair["input"], pair["output"]) for pair in metadata["train_examples"]]
    test = metadata["test_example"]
    return train, [(test["input"], test["output"])]


_GYM_READERS: dict[str, Callable[[dict[str, Any]], tuple[_Pairs, _Pairs]]] = {
    "list_functions": _list_functions,
    "acre": _acre,
    "arc_1d": _arc_1d,
}
