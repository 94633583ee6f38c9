"""Probe inputs: inputs like a problem's training inputs, on which programs are told apart by what they do."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from skillweave.reason.problem import Value
from skillweave.tasks.verifiers.code_result import same_result

_TRIES = 20
"""How many mutations are made for each probe input that is wanted, before fewer are returned."""


def probe_inputs(inputs: Sequence[Value], count: int, seed: int) -> tuple[Value, ...]:
    """At most ``count`` mutations of the inputs, all different from each other and from the inputs.

    They keep the conventions that the inputs share, as far as these can be seen: types, the set of items, whether a
    list may be empty, equal lengths of the lists of a grid, words separated by single spaces. Fewer are returned if
    fewer different ones are found. The same arguments give the same probes.
    """
    rng = Random(f"probes {seed}")
    seen = {_text(value) for value in inputs}
    habits = _Habits()
    for value in inputs:
        habits.see(value, ())
    probes: list[Value] = []
    for attempt in range(count * _TRIES if inputs else 0):
        if len(probes) == count:
            break
        value = inputs[attempt % len(inputs)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = _mutated(value, (), rng, habits)
        if (text := _text(value)) not in seen:
            seen.add(text)
            if not any(same_result(value, other) for other in (*inputs, *probes)):  # 1 and 1.0
                probes.append(value)
    return tuple(probes)


def _text(value: Value) -> str:
    return json.dumps(value, sort_keys=True)


_Place = tuple[str | None, ...]
"""Where a value stands within an input: for each level the key of a mapping, or :data:`_ANY` for any item of a list."""
_ANY = None


@dataclass
class _Seen:
    """What was seen at one place, over all inputs."""

    values: list[Value] = field(default_factory=list)
    lengths: set[int] = field(default_factory=set)  # of lists, and of texts in characters
    items: dict[str, Value] = field(default_factory=dict)  # different items of lists, by their JSON
    words: dict[str, None] = field(default_factory=dict)  # different words of texts
    characters: dict[str, None] = field(default_factory=dict)  # different characters of texts
    kinds: set[type] = field(default_factory=set)


class _Habits:
    """What the inputs have in common, place by place."""

    def __init__(self) -> None:
        self._seen: dict[_Place, _Seen] = {}

    def at(self, place: _Place) -> _Seen:
        """What was seen at a place."""
        return self._seen.setdefault(place, _Seen())

    def see(self, value: Value, place: _Place) -> None:
        """Record a value and everything inside it."""
        seen = self.at(place)
        seen.values.append(value)
        seen.kinds.add(type(value))
        if isinstance(value, str):
            seen.lengths.add(len(value))
            seen.words |= dict.fromkeys(value.split())
            seen.characters |= dict.fromkeys(value)
        elif isinstance(value, list | tuple):
            seen.lengths.add(len(value))
            for item in value:
                seen.items.setdefault(_text(item), item)
                self.see(item, (*place, _ANY))
        elif isinstance(value, dict):
            for key, item in value.items():
                self.see(item, (*place, key))


def _mutated(value: Value, place: _Place, rng: Random, habits: _Habits) -> Value:
    """The value with one change; unchanged if it has no part that could change."""
    seen = habits.at(place)
    if isinstance(value, bool) or value is None:
        return rng.choice([other for other in seen.values if type(other) is type(value)])
    if isinstance(value, int):
        return _near(value, seen, rng)
    if isinstance(value, float):
        other = rng.choice((value + rng.choice((-1.0, 1.0)), value * 2, -value if _some_negative(seen) else value / 2))
        return other if math.isfinite(other) else value
    if isinstance(value, str):
        return _other_text(value, seen, rng)
    if isinstance(value, dict):
        if not value:
            return value
        key = rng.choice(list(value))
        return {**value, key: _mutated(value[key], (*place, key), rng, habits)}
    if _is_grid(value) and all(isinstance(other, list | tuple) and _is_grid(other) for other in seen.values):
        return _other_grid(value, habits.at((*place, _ANY)), rng)
    return _other_list(list(value), place, rng, habits)


def _near(value: int, seen: _Seen, rng: Random) -> int:
    """A whole number near the value or in the range that was seen, doubled upwards; none is negative if none was."""
    known = [other for other in seen.values if isinstance(other, int)]
    low, high = min(known), max(known)
    near = value + rng.choice((-3, -2, -1, 1, 2, 3))
    other = rng.choice((near, near, rng.randint(low, high), rng.randint(low, high + (high - low))))
    return other if low < 0 else max(0, other)


def _some_negative(seen: _Seen) -> bool:
    return any(isinstance(other, int | float) and other < 0 for other in seen.values)


def _other_text(value: str, seen: _Seen, rng: Random) -> str:
    """Another text of the same kind: of words where some text has several, else of characters."""
    texts = [other for other in seen.values if isinstance(other, str)]
    if any(" " in other.strip() for other in texts):
        return " ".join(_other_items(value.split(), [text.split() for text in texts], list(seen.words), rng))
    return "".join(_other_items(list(value), [list(text) for text in texts], list(seen.characters), rng))


def _other_list(value: list[Value], place: _Place, rng: Random, habits: _Habits) -> list[Value]:
    """Another list: items dropped, doubled, swapped, drawn, put together from two lists, or changed themselves."""
    seen = habits.at(place)
    # A list such as [2, "text", [1]] is a record: each item keeps its place and its type.
    is_record = len(seen.lengths) == 1 and len(habits.at((*place, _ANY)).kinds) > 1
    if value and (is_record or rng.random() < 0.25):
        at = rng.randrange(len(value))
        changed = _mutated(value[at], (*place, _ANY), rng, habits)
        return [*value[:at], changed, *value[at + 1 :]]
    others = [list(other) for other in seen.values if isinstance(other, list | tuple)]
    return _other_items(value, others, list(seen.items.values()), rng)


def _other_items(value: list[Any], others: list[list[Any]], items: list[Any], rng: Random) -> list[Any]:
    """Another sequence of the items that were seen. Its length is fixed if that of all others is."""
    lengths = {len(other) for other in others}
    fixed = len(lengths) == 1 and len(others) > 1
    if not items:
        return value
    at = rng.randrange(len(value)) if value else 0
    ways = ["put", "swap", "cross"] if fixed else ["put", "swap", "cross", "drop", "double", "append", "insert"]
    way = rng.choice(ways)
    if way == "append":
        return [*value, rng.choice(items)]
    if way == "insert":
        return [*value[:at], rng.choice(items), *value[at:]]
    if not value:
        return value
    if way == "put":
        return [*value[:at], rng.choice(items), *value[at + 1 :]]
    if way == "swap":
        other = rng.randrange(len(value))
        swapped = list(value)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        return swapped
    if way == "double":
        return [*value[: at + 1], *value[at:]]
    if way == "drop":
        return [*value[:at], *value[at + 1 :]] if len(value) > 1 or 0 in lengths else value
    partner = rng.choice(others)
    crossed = [*value[:at], *partner[at if fixed else rng.randrange(len(partner) + 1) :]]
    return crossed if crossed or 0 in lengths else value


def _is_grid(value: Sequence[Value]) -> bool:
    """Whether it is a list of lists of one length, with numbers or texts in them."""
    return (
        len(value) > 0
        and all(isinstance(row, list | tuple) and len(row) == len(value[0]) > 0 for row in value)
        and all(isinstance(cell, int | float | str) for row in value for cell in row)
    )


def _other_grid(grid: Sequence[Sequence[Value]], rows: _Seen, rng: Random) -> list[list[Value]]:
    """Another grid with equally long rows: a cell of another colour that was seen, or cells, rows or columns moved."""
    cells = [list(row) for row in grid]
    y, x = rng.randrange(len(cells)), rng.randrange(len(cells[0]))
    way = rng.choice(("cell", "cell", "swap", "rows", "columns", "drop", "double"))
    if way == "cell":
        cells[y][x] = rng.choice(list(rows.items.values()))
    elif way == "swap":
        v, u = rng.randrange(len(cells)), rng.randrange(len(cells[0]))
        cells[y][x], cells[v][u] = cells[v][u], cells[y][x]
    elif way == "rows":
        cells[y], cells[0] = cells[0], cells[y]
    elif way == "columns":
        for row in cells:
            row[x], row[0] = row[0], row[x]
    elif way == "double" and len(rows.lengths) > 1:
        cells = [[*row[: x + 1], *row[x:]] for row in cells]
    elif way == "drop" and len(rows.lengths) > 1 and len(cells[0]) > 1:
        cells = [[*row[:x], *row[x + 1 :]] for row in cells]
    return cells
