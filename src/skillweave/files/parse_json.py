"""JSON from strangers, read with bounds: what is too deep, too large a number or said twice is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from skillweave.errors import UserError

DEEPEST = 100
"""Lists and objects within each other. Whatever walks a value may then call itself."""
_LARGEST_WHOLE = 2**64
"""Nothing that a card counts, and no seed, reaches this."""


def parse_json(text: str, where: str, *, bounded: bool = False, characters: bool = True) -> Any:
    """What the JSON text holds; ``where`` names its place in errors.

    A key that an object has twice is refused, because one of the values would be lost; so is half a character (a lone
    surrogate), which nothing can write. ``bounded``: numbers must be finite, and whole numbers below 2**64.
    ``characters``: False leaves half characters to the caller, who knows a better name for their place.
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
    # Only an escape can say half a character.
    return check_characters(value, where) if characters and ("\\ud" in text or "\\uD" in text) else value


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


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(f"{where}: the key {twice!r:.60} stands twice in one object: remove one of them")
    return found


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
    return UserError(f"{where}: this JSON cannot be read: lists or objects lie more than {DEEPEST} deep in each other")


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
    raise UserError(f"{where}: {name} stands where a finite number is expected")
