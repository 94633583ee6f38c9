"""Read JSON as models write it: in Python's spelling, with extra commas, with brackets that were not closed."""

from __future__ import annotations

import json
import math
import re
from typing import Any


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, inner in pairs:
        if key in value:
            raise json.JSONDecodeError(f"the key {key[:40]!r} appears twice", "", 0)
        value[key] = inner
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise json.JSONDecodeError(f"{text[:40]} is not a number that JSON can hold", "", 0)
    return value


# Not strict: small models write the line breaks of code as they are, although JSON requires \n.
_JSON = json.JSONDecoder(strict=False, object_pairs_hook=_object, parse_float=_number, parse_constant=_number)

# The quantifiers are possessive, so that a string without an end is scanned once and not from each character.
_TOKEN = re.compile(
    r"""(?P<space>\s++)
    | (?P<string>"(?:[^"\\]++|\\.)*+" | '(?:[^'\\]++|\\.)*+')
    | (?P<open>[{\[]) | (?P<close>[}\]]) | (?P<mark>[,:])
    | (?P<number>-?[0-9][0-9.eE+-]*+)
    | (?P<key>[A-Za-z_]\w*+)(?=\s*+:)
    | (?P<word>[A-Za-z]++)""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_PARTNER = {"{": "}", "[": "]"}
_IN_STRING = re.compile(r'''\\(?:x([0-9a-fA-F]{2})|u[0-9a-fA-F]{4}|["\\/bfnrt]|(.))|"''', re.DOTALL)


def read_json(text: str, start: int, end_mark: str = "") -> tuple[Any, int, bool]:
    """The value that begins at ``start``, the index of its end, and whether it is JSON by the standard.

    Objects and lists may also have single quotes, ``True``, ``False`` and ``None``, keys without quotes, a backslash
    before any character, and a comma before the closing bracket. Brackets that are still open before ``end_mark`` are
    closed there. Strings may hold line breaks. The time is linear in the length of what is read.

    Raises ``ValueError`` (also ``RecursionError``) for anything else, with the reason that the strict reader gives. A
    key that appears twice in an object, NaN and infinity, and half a character are not read: they would have to be
    guessed, or could not be passed on as JSON.
    """
    try:
        value, end = _JSON.raw_decode(text, start)
        strict = True
    except ValueError as problem:
        respelt = _as_json(text, start, end_mark)
        if respelt is None:
            raise
        try:
            value, end, strict = _JSON.decode(respelt[0]), respelt[1], False
        except ValueError:
            raise problem from None
    if "\\u" in text[start:end]:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise json.JSONDecodeError("a text in it holds half a character", text, start) from None
    return value, end, strict


def _as_json(text: str, start: int, end_mark: str) -> tuple[str, int] | None:
    """The object or list at ``start`` with its tokens spelt as in JSON, and its end; None if it has no end."""
    parts: list[str] = []
    open_brackets: list[str] = []
    last = -1  # the index of the last part that is not white space
    at = start
    while token := _TOKEN.match(text, at):
        at = token.end()
        kind, found = token.lastgroup, token[0]
        if kind == "open":
            open_brackets.append(_PARTNER[found])
        elif kind == "close":
            if not open_brackets or open_brackets.pop() != found:
                return None
            if parts[last] == ",":
                parts[last] = ""
        elif kind == "string":
            found = _string(found)
        elif kind == "key":
            found = f'"{found}"'
        elif kind == "word":
            if found not in _WORDS:
                return None
            found = _WORDS[found]
        if kind != "space":
            last = len(parts)
        parts.append(found)
        if not open_brackets:
            if kind == "close":
                return "".join(parts), at
            if kind != "space":
                return None
    # After a comma more than a bracket is missing, so that is not repaired.
    if open_brackets and parts[last] != "," and end_mark and text.startswith(end_mark, at):
        return "".join([*parts, *reversed(open_brackets)]), at
    return None


def _string(literal: str) -> str:
    """A string in single or double quotes, spelt as in JSON. A backslash that escapes nothing is kept, as in Python."""

    def written(found: re.Match[str]) -> str:
        if found[0] == '"':
            return '\\"'
        if found[1]:
            return f"\\u00{found[1]}"
        if found[2]:
            return "'" if found[2] == "'" else f"\\\\{found[2]}"
        return found[0]

    return f'"{_IN_STRING.sub(written, literal[1:-1])}"'
