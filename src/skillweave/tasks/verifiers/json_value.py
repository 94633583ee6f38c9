"""The verifier ``json``: the JSON value in an answer, and when two such values are the same."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from skillweave.config import Config


class JsonOptions(Config):
    """``json``: the first JSON object or array in the answer equals the gold one. There is nothing to set."""


_DECODER = json.JSONDecoder()
_TRIES = 200  # starts tried in one text: bounds the work on an answer made of nothing but brackets
_MISSING = object()


def first_json(text: str, starts: str = '{["-0123456789tfn') -> Any:
    """The first JSON value in ``text`` that begins with one of ``starts``; a private marker where there is none."""
    places = (index for index, character in enumerate(text) if character in starts)
    for index, _ in zip(places, range(_TRIES), strict=False):
        with contextlib.suppress(ValueError, RecursionError):
            return _DECODER.raw_decode(text, index)[0]
    return _MISSING


def same_json(a: Any, b: Any) -> bool:
    """Structural equality: key order is free, 1 equals 1.0, tuples are arrays; true is not 1, NaN equals nothing.

    Floats within 1e-9 of each other (relative) are equal, so that 0.1 + 0.2 is 0.3; whole numbers compare exactly.
    """
    if isinstance(a, dict) and isinstance(b, dict):
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
        except OverflowError:  # an integer that no float can hold
            return False
    return type(a) is type(b) and a == b


def json_equal(answer: str, gold: str, options: JsonOptions) -> float:
    """1 where the answer's first JSON value equals the gold one, whatever prose or fence stands around it.

    Where the gold value is an object or an array only such values are looked for (prose holds numbers too).
    """
    wanted = first_json(gold)
    found = first_json(answer, "{[") if isinstance(wanted, dict | list) else first_json(answer)
    try:
        return float(found is not _MISSING and same_json(found, wanted))
    except RecursionError:
        return 0.0


def gold_problem(gold: str) -> str | None:
    """Why no answer could match ``gold``, or None."""
    return f"verifier 'json' found no JSON value in the answer {gold[:60]!r}" if first_json(gold) is _MISSING else None
