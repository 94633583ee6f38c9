"""Compare a program's result with the value that a case expects."""

from __future__ import annotations

import math
from typing import Any

_RELATIVE, _ABSOLUTE = 1e-9, 1e-12
_MANY = 1000  # sets with more items must be exactly equal, because comparing each pair of items takes too long


def same_result(found: Any, wanted: Any) -> bool:
    """Whether two values of plain data are the same in terms of JSON.

    - A tuple equals a list. A key of a dict is its JSON text (``1`` and ``"1"``).
    - A set equals a list of its items in any order, each once.
    - ``True`` is not 1, and 1 is 1.0. Integers are compared exactly, other numbers within 1e-9 (relative) or 1e-12
      (absolute). NaN equals NaN, and an infinity equals itself.
    """
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return _same_number(found, wanted)
    if isinstance(found, complex) or isinstance(wanted, complex):
        return _same_complex(found, wanted)
    if isinstance(found, set | frozenset) or isinstance(wanted, set | frozenset):
        return _same_set(found, wanted)
    if isinstance(found, dict) and isinstance(wanted, dict):
        return _same_dict(found, wanted)
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(same_result(x, y) for x, y in zip(found, wanted, strict=True))
    try:
        return type(found) is type(wanted) and bool(found == wanted)
    except (ArithmeticError, TypeError):  # a signalling NaN of Decimal, or a time with a zone and one without
        return False


def _same_number(found: float, wanted: float) -> bool:
    if isinstance(found, int) and isinstance(wanted, int):
        return found == wanted
    if found != found or wanted != wanted:  # NaN; an integer too large for a float is not NaN
        return found != found and wanted != wanted
    try:
        return math.isclose(found, wanted, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    except OverflowError:  # an integer too large for a float
        return False


def _same_complex(found: Any, wanted: Any) -> bool:
    if not isinstance(found, int | float | complex) or not isinstance(wanted, int | float | complex):
        return False
    a, b = complex(found), complex(wanted)
    return _same_number(a.real, b.real) and _same_number(a.imag, b.imag)


def _same_dict(found: dict[Any, Any], wanted: dict[Any, Any]) -> bool:
    if len(found) != len(wanted):
        return False
    if found.keys() == wanted.keys():
        return all(same_result(found[key], wanted[key]) for key in found)
    named = {_key(key): value for key, value in found.items()}
    others = {_key(key): value for key, value in wanted.items()}
    return (
        len(named) == len(found)
        and named.keys() == others.keys()
        and all(same_result(value, others[key]) for key, value in named.items())
    )


def _key(key: Any) -> Any:
    """Return a key as JSON writes it; a key that JSON does not have is returned unchanged."""
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    try:
        return repr(key) if isinstance(key, int | float) else key
    except ValueError:  # an integer with too many digits to be written in JSON
        return key


def _same_set(found: Any, wanted: Any) -> bool:
    """Whether a set has as many items as a set or a list, and each item of one is also in the other, in any order."""
    kinds = (set, frozenset, list, tuple)
    if not isinstance(found, kinds) or not isinstance(wanted, kinds) or len(found) != len(wanted):
        return False
    if len(found) > _MANY:
        return _exactly_same_set(found, wanted)
    left = list(wanted)
    for item in found:
        place = next((place for place, other in enumerate(left) if same_result(item, other)), None)
        if place is None:
            return False
        left.pop(place)
    return True


def _exactly_same_set(found: Any, wanted: Any) -> bool:
    try:
        return set(found) == set(wanted)
    except TypeError:  # a list of lists
        return False
