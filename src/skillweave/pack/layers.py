"""Write the entries of a card that differ in the number of their layer and in their rank only as one: pure functions.

Most entries of a pack are alike, and a card would take a tenth of a small pack. So ``layers`` of a card holds

    "model.layers.*.mlp.up_proj.weight": {"kind": "lowrank", "ranks": {"0": 4, "1": 6}, ...}

for an entry with rank 4 whose name has 0 in place of the star, and one with rank 6 whose name has 1. The star in other
fields, such as ``group``, stands for the same number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_DIGITS = r"(?:0|[1-9][0-9]{0,5})"
_NUMBER = re.compile(rf"(?<=\.){_DIGITS}(?=\.)")
"""The number of a layer in the name of a tensor."""
_LONGEST = 1024
"""Characters of a text in a line: a short file must not become a large card."""


def joined(entries: Mapping[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the entries in the form of ``layers``, and those that cannot be written so; both keep their order."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    alone = {}
    for name, entry in entries.items():
        number = _NUMBER.search(name)
        if number is None or "rank" not in entry or "*" in name or "*" in entry.get("group", ""):
            alone[name] = entry
            continue
        pattern = _starred(name, number[0])
        fields = {**entry, **({"group": _starred(entry["group"], number[0])} if "group" in entry else {})}
        rank = fields.pop("rank")
        alike = json.dumps(fields)
        known, line = found.setdefault(pattern, (alike, {**fields, "ranks": {}}))
        if known != alike:
            alone[name] = entry
        else:
            line["ranks"][number[0]] = rank
    return {pattern: line for pattern, (_, line) in found.items()}, alone


def expanded(layers: Any) -> dict[str, dict[str, Any]]:
    """Return the entries that :func:`joined` wrote as ``layers``. Raises ValueError for another form."""
    entries: dict[str, dict[str, Any]] = {}
    if not isinstance(layers, dict):
        raise ValueError("layers: expected an object")
    for pattern, line in layers.items():
        _filled(pattern, "")
        ranks = line.get("ranks") if isinstance(line, dict) else None
        if not isinstance(ranks, dict) or pattern.count("*") != 1 or "rank" in line:
            raise ValueError(f"layers: {pattern[:100]!a}: expected a name with one '*', and 'ranks' by layer")
        for number, rank in ranks.items():
            if not re.fullmatch(_DIGITS, number):
                raise ValueError(f"layers: {pattern[:100]!a}: {number[:20]!a} is no number of a layer")
            fields = {key: _filled(value, number) for key, value in line.items() if key != "ranks"}
            name = pattern.replace("*", number)
            if name in entries:
                raise ValueError(f"layers: '{name[:100]!a}' occurs twice")
            entries[name] = {**fields, "rank": rank}
    return entries


def _starred(text: str, number: str) -> str:
    """Return ``text`` with the first occurrence of the layer's number replaced by a star, if it is there."""
    return re.sub(rf"(?<=\.){number}(?=[.:])", "*", text, count=1)


def _filled(value: Any, number: str) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST:
        raise ValueError(f"layers: a text of {len(value)} characters; at most {_LONGEST} are allowed")
    return value.replace("*", number) if isinstance(value, str) else value
