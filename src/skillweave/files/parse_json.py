"""Read JSON from strangers with limits: deep nesting, huge numbers and repeated keys are refused, with their place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from skillweave.errors import UserError

DEEPEST = 100
"""Most lists and objects inside each other. Code that walks a value may then be recursive."""
_LARGEST_WHOLE = 2**64
"""No count in a card and no seed is this large."""


def parse_json(text: str, where: str, *, bounded: bool = False, characters: bool = True) -> Any:
    """The value of a JSON text; ``where`` names its place in errors.

    - A key that an object has twice is refused, because one of the values would be lost.
    - Half a character (a lone surrogate) is refused, because no file can hold it. ``characters=False`` leaves this
      check to a caller that knows a better name for the place.
    - ``bounded=True``: numbers must be finite, and whole numbers below 2**64.

    Raises :class:`UserError`.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": lambda pairs: _object(pairs, where)}
    if bounded:
        hooks |= {
            "parse_int": lambda digits: _whole(digits, where),
            "parse_float": lambda digits: _finite(digits, where),
            "parse_constant": lambda name: _no_number(name, where),
        }
    try:
        value = json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        line = "" if ", line " in where else f", line {error.lineno}"
        raise UserError(f"{where}{line}: not valid JSON ({error.msg})") from error
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise UserError(f"{where}: this JSON cannot be read: a number has too many digits ({error})") from error
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value, where)
    # Only an escape can express half a character.
    return check_characters(value, where) if characters and ("\\ud" in text or "\\uD" in text) else value


def check_characters(value: Any, where: str) -> Any:
    """Return a JSON value unchanged. Raises :class:`UserError` if a text or a key in it has half a character.

    JSON can express half of a character beyond the 16-bit range (a lone surrogate, as in a cut emoji), but no tokenizer
    and no file accepts it.
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


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, keys included, each with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{place} a key", str(key)
            yield from _texts(inner, f"{place} '{key}'")
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, place)


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(f"{where}: the key {twice!r:.60} appears twice in one object: remove one of them")
    return values


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep(where)


def _too_deep(where: str) -> UserError:
    return UserError(f"{where}: this JSON cannot be read: lists or objects are nested more than {DEEPEST} deep")


def _whole(digits: str, where: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= _LARGEST_WHOLE:
        raise UserError(
            f"{where}: the number {digits[:20]}... is larger than any that belongs here ({len(digits)} digits)"
        )
    return int(digits)


def _finite(digits: str, where: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _no_number(digits[:40], where)
    return value


def _no_number(name: str, where: str) -> NoReturn:
    raise UserError(f"{where}: a finite number is expected, not {name}")
