"""Types of values in an artefact's card: a stranger may have written them, so their size is limited when read."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field

DEEPEST = 32
"""Most lists and objects inside each other in a free field."""
LARGEST = 2**20
"""Most values, keys and characters together in a free field. The largest that this program writes, lists of tensors
that were left out, have a tenth of it."""
_LARGEST_WHOLE = 2**64


def check_free(value: Any) -> Any:
    """Return ``value`` if it is JSON of limited depth and size with finite numbers. Raises ``ValueError`` if not."""
    room = LARGEST
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for one in level:
            room -= 1 + (len(one) if isinstance(one, str) else 0)
            if isinstance(one, dict):
                if not all(isinstance(key, str) for key in one):
                    raise ValueError("a key is not a text")
                room -= sum(map(len, one))
                inner += one.values()
            elif isinstance(one, list | tuple):
                inner += one
            else:
                _check_plain(one)
            if room - len(inner) < 0:
                raise ValueError(f"it holds more than {LARGEST:,} characters and values")
        if not inner:
            return value
        level = inner
    raise ValueError(f"its lists or objects are nested more than {DEEPEST} deep")


def _check_plain(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a finite number is expected, not {value}")
    if isinstance(value, int) and abs(value) >= _LARGEST_WHOLE:
        raise ValueError("a whole number is 2**64 or more")
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(f"a value of the type {type(value).__name__} is not JSON")


def _check_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds control characters or line feeds")
    return text


Free = Annotated[dict[str, Any], AfterValidator(check_free)]
"""An object with any keys."""
Line = Annotated[str, Field(max_length=4096), AfterValidator(_check_line)]
"""A text that is shown on one line."""
Version = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Number = Annotated[float, Field(strict=True)]
"""A number, also a fraction; not a text such as "NaN", and not true. NaN itself is refused when JSON is read."""
Size = Annotated[int, Field(strict=True, gt=0, lt=2**48)]
Flag = Annotated[bool, Field(strict=True)]
Shape = Annotated[tuple[Size, ...], Field(max_length=8)]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+\-/@#=\[\],]{1,500}$")]
"""The name of a tensor: no space, no quote, and nothing that a terminal or Markdown would interpret."""
