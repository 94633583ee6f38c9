"""The verifier ``json``: find the JSON value that an answer gives, and compare it with the gold value."""

from __future__ import annotations

import contextlib
import json
import math
import re
import unicodedata
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from skillweave.tasks.verifiers.numeric import NumericOptions, find_number
from skillweave.tasks.verifiers.place import (
    PlaceOptions,
    TextSpan,
    boxes,
    has_denial,
    marked_part,
    one_of,
    tagged_answers,
)

_MISSING = object()
_UNCLOSED_TRIES = 10
"""The search continues after at most so many unclosed brackets, which bounds the work on an answer full of them."""


class JsonOptions(PlaceOptions):
    """``json``: the JSON value that the answer gives equals the gold one.

    ``after`` and ``answer_pattern`` name the part of the text to search. ``boxed`` is not available for JSON.
    """

    answer_at: Literal["auto", "last", "first", "whole"] = Field(
        default="auto",
        description="`auto`: the last fenced block of JSON, else the last whole value of the gold's type in the text",
    )


def same_json(a: Any, b: Any) -> bool:
    """Return whether two JSON values are structurally equal.

    - The order of keys does not matter, tuples are arrays, 1 equals 1.0, true is not 1, and NaN equals nothing.
    - Floats within 1e-9 of each other (relative) are equal, so 0.1 + 0.2 is 0.3. Integers are compared exactly.
    - Texts and keys are compared in NFC.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = _nfc_keys(a), _nfc_keys(b)
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        try:
            return math.isfinite(a) and math.isfinite(b) and math.isclose(a, b, rel_tol=1e-9)
        except OverflowError:  # an integer too large for a float
            return False
    if isinstance(a, str) and isinstance(b, str):
        return unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)
    return type(a) is type(b) and a == b


def _nfc_keys(value: dict[str, Any]) -> dict[str, Any]:
    composed = {unicodedata.normalize("NFC", str(key)): item for key, item in value.items()}
    return composed if len(composed) == len(value) else value


def whole_json(text: str) -> Any:
    """Return the value of a text that is JSON as a whole; a private marker if it is not.

    ``NaN``, ``Infinity``, numbers too large for a float and objects with a repeated key do not count as JSON here.
    """
    try:
        value = json.loads(text.strip(), parse_constant=_refuse, object_pairs_hook=_object)
        return value if _finite(value) else _MISSING
    except (ValueError, RecursionError):
        return _MISSING


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("the object has a key twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_FENCE = re.compile(
    r"^[ \t]*```[ \t]*([\w+-]*)[^\n`]*\n(.*?)(?:(?:^|(?<=[\]}]))[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
"""A fenced block. The fence that closes it may stand on the last line of the value."""
_JSON_NAMES = ("json", "json5", "jsonc")
_PLAIN_NAMES = ("", "text", "txt", "plain", "plaintext")
_OPENING = re.compile(r"[\[{]")
_BRACKET = re.compile(r'[\[{\]}]|"(?:[^"\\]|\\.)*(?:"|\Z)', re.DOTALL)
_SCALAR = re.compile(r'"(?:[^"\\\n]|\\.)*"|\b(?:true|false|null)\b')
_INTERVAL = re.compile(r"\[[^\[\]{}()\"\n]{1,40},[^\[\]{}()\"\n]{1,40}\)")
"""A half-open interval, ``[0, 1)``: its bracket opens no list."""
_ANSWER_BEGINS = ("{", "[", '"', "```")
_BEGINS_JSON = re.compile(r"""\{\s*(?:["}]|'?\w+'?\s*:|//|/\*|\#|\.\.\.)|\[\s*(?:["{\[\]\-0-9tfn]|//|/\*|\#|\.\.\.)""")


def find_json(text: str, kind: type, options: JsonOptions) -> Any:
    """Return the JSON value of type ``kind`` that a text gives as its answer; a private marker if there is none."""
    if options.marked:
        parts = _marked(text, options)
        return _chosen(parts[0], kind, "first") if parts else _MISSING
    if options.answer_at == "whole":
        return whole_json(text)
    which: Literal["first", "last"] = "first" if options.answer_at == "first" else "last"
    if (found := [one for one in boxes(text) if one.content[:1] in ("{", "[")]) and whole_json(text) is _MISSING:
        content = one_of(found, text, which)
        return _MISSING if content is None else _of_kind(whole_json(content), kind)
    if (tagged := _tagged_json(text)) and whole_json(text) is _MISSING:
        content = one_of(tagged, text, which)
        return _MISSING if content is None else find_json(content, kind, options)
    blocks = [TextSpan(m.start(), m.end(), m[2]) for m in _FENCE.finditer(text) if m[1].lower() in _JSON_NAMES]
    if blocks:
        values = [(block, whole_json(block.content)) for block in blocks]
        given = [one for one, value in values if value is _MISSING or _is_kind(value, kind)]
        block = one_of([one for one in given if not has_denial(text, one.start, one.end)], text, which)
        return _MISSING if block is None else _of_kind(whole_json(block), kind)
    # Code blocks are skipped, except a block that is a JSON value as a whole, whatever language it names.
    return _chosen(_FENCE.sub(lambda m: m[0] if _may_hold_json(m) else "\n", text), kind, which)


def _tagged_json(text: str) -> list[TextSpan]:
    """Return every ``<answer>...</answer>`` whose content begins as JSON or as a fenced block."""
    return [one for one in tagged_answers(text) if one.content.startswith(_ANSWER_BEGINS)]


def _may_hold_json(block: re.Match[str]) -> bool:
    return block[1].lower() in _PLAIN_NAMES or whole_json(block[2]) is not _MISSING


def _marked(text: str, options: JsonOptions) -> list[str]:
    """Return the part that the options name; after ``after`` a value may continue over several lines."""
    if options.after is None:
        part = marked_part(text, options)
        return [] if part is None else [part]
    places = [match.end() for match in re.finditer(re.escape(options.after), text, re.IGNORECASE)]
    return [text[places[0 if options.answer_at == "first" else -1] :]] if places else []


def _is_kind(value: Any, kind: type) -> bool:
    return type(value) is kind or (kind in (int, float) and type(value) in (int, float))


def _of_kind(value: Any, kind: type) -> Any:
    return value if _is_kind(value, kind) else _MISSING


def _chosen(text: str, kind: type, which: Literal["first", "last"]) -> Any:
    """Return the first or last whole value of a type in a text; none if it is in a list of different ones."""
    whole = whole_json(text)
    if whole is not _MISSING:
        return _of_kind(whole, kind)
    if kind in (int, float):
        return _number(text)
    found = _containers(text, kind) if kind in (dict, list) else _scalars(text, kind)
    values = [one for one in found if not has_denial(text, one[0], one[1])]
    parts = [TextSpan(start, end, json.dumps(value, sort_keys=True)) for start, end, value in values]
    if one_of(parts, text, which) is None:
        return _MISSING
    value = values[0 if which == "first" else -1][2]
    return value if kind is type(None) or value is not None else _MISSING


def _number(text: str) -> Any:
    """Return the number of a text outside objects and arrays, as ``numeric`` reads it, without a percent sign."""
    outside, at = [], 0
    for start, end, _ in sorted(_containers(text, dict) + _containers(text, list), key=lambda value: value[:2]):
        if start < at:  # a value that is cut off is in both lists
            continue
        outside.append(text[at:start])
        at = end
    found = find_number("; ".join([*outside, text[at:]]), NumericOptions())
    if found is None or found.percent:
        return _MISSING
    return int(found.value) if found.value.denominator == 1 else _float(found.value)


def _float(value: Fraction) -> Any:
    try:
        return float(value)
    except OverflowError:
        return _MISSING


def _containers(text: str, kind: type) -> list[tuple[int, int, Any]]:
    """Return the outermost objects or arrays of a text, each as (start, end, value).

    A value inside another one is not an answer, nor is one inside a broken or cut-off value. If a value is cut off at
    the end of the text, it is the last one, as None.
    """
    found: list[tuple[int, int, Any]] = []
    at = tries = 0
    while (opened := _OPENING.search(text, at)) is not None:
        start = opened.start()
        if no_value := _no_value(text, start):
            at = no_value
            continue
        try:
            value, at = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = _balanced(text, start)
            if end is None:
                tries += 1
                if _BEGINS_JSON.match(text, start) or tries >= _UNCLOSED_TRIES:
                    return [*found, (start, len(text), None)]  # everything after it is a part of it
                at = start + 1
            else:
                at = end
            continue
        if type(value) is kind and _is_finite(value):
            found.append((start, at, value))
    return found


def _no_value(text: str, start: int) -> int | None:
    """Return where to continue after a bracket that opens no value: ``[0, 1)``, ``\\sqrt[3]{8}``; None for others."""
    if interval := _INTERVAL.match(text, start):
        return interval.end()
    return start + 1 if text.startswith("\\sqrt[", start - 5) else None


def _is_finite(value: Any) -> bool:
    try:
        return _finite(value)
    except RecursionError:
        return False


def _balanced(text: str, start: int) -> int | None:
    """Return where the bracket at ``start`` is closed, ignoring quoted texts; None if it never is."""
    depth = 0
    for bracket in _BRACKET.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket[0], 0)
        if depth == 0:
            return bracket.end()
    return None


def _scalars(text: str, kind: type) -> list[tuple[int, int, Any]]:
    """Return the quoted texts, or the words true, false and null, outside objects and arrays: (start, end, value)."""
    found: list[tuple[int, int, Any]] = []
    at = tries = 0
    while at < len(text):
        opened = _OPENING.search(text, at)
        end = opened.start() if opened else len(text)
        for match in _SCALAR.finditer(text, at, end):
            value = _of_kind(whole_json(match[0]), kind)
            if value is not _MISSING:
                found.append((match.start(), match.end(), value))
        behind = _behind_bracket(text, end) if opened else len(text)
        tries += behind is None
        at = len(text) if tries >= _UNCLOSED_TRIES else end + 1 if behind is None else behind
    return found


def _behind_bracket(text: str, start: int) -> int | None:
    r"""Return where to look for a scalar after the bracket at ``start``: not in a value that is cut off.

    None: right after the bracket, which opens no value and is not closed, as in ``\left\{ ... \right.``.
    """
    end = _no_value(text, start) or _balanced(text, start)
    if end is None and text[max(start - 1, 0)] == "\\" and not _BEGINS_JSON.match(text, start):
        return None
    return len(text) if end is None else end


def json_equal(answer: str, gold: str, options: JsonOptions) -> float:
    """Return 1 if the value of the answer equals the gold value, whatever text or fence is around it; else 0."""
    wanted = whole_json(gold)
    if wanted is _MISSING:
        return 0.0
    try:
        found = find_json(answer, type(wanted), options)
        return float(found is not _MISSING and same_json(found, wanted))
    except RecursionError:
        return 0.0


def gold_problem(gold: str) -> str | None:
    """Return why no answer could match ``gold``, or None."""
    if whole_json(gold) is not _MISSING:
        return None
    hint = ""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(gold), dict | list):
            hint = " (an object with a repeated key, NaN and Infinity are not allowed)"
    if re.search(r"'\w+'\s*:", gold):
        hint = "; it looks like a Python dict: write it with json.dumps, which uses double quotes"
    return f"verifier 'json' needs an answer that is JSON as a whole, and {gold[:60]!r} is not{hint}"
