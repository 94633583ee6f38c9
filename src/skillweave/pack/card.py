"""The card of a pack as a person reads it: ``README.md``.

Free fields may hold anything that a stranger wrote. They are shown as text: nothing in them is Markdown or HTML, and
what is too long is cut, with a note.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from skillweave.delta.carry import FOLDER
from skillweave.pack.schema import PackBytes, PackCard, RowsEntry
from skillweave.terminal import one_line

_MARKUP = re.compile(r"([\\`*\[\]<>|&~$])")
_MOST_ROWS = 50
_SIZE_WIDTH = 72


def card_text(card: PackCard) -> str:
    """Markdown: what the pack is, what it goes on, what it weighs, how it scored, and what was left out."""
    kinds = [entry.kind for entry in card.entries.values()]
    lines = [
        f"# {card.name}",
        "",
        f"A skillpack: a small change to one base model, made by {_code(card.method)}, zipped by "
        f"{_code(card.codec.name)}.",
        "",
        "| | |",
        "|---|---|",
        f"| base | {_code(card.base.ref)} |",
        f"| fingerprint | {_code(card.base.fingerprint)} |",
        f"| tensors | {', '.join(f'{kinds.count(kind)} {kind}' for kind in sorted(set(kinds))) or 'none'} |",
        f"| size | {_size(card.bytes)} |",
        *(f"| {what} | {told} |" for what, told in travels(card)),
        *_rows(card.codec.settings),
        "",
        "The pack loads on this base only.",
    ]
    for title, values, show in (
        ("Data", card.data, one_line),
        ("Scores", card.scores, score_text),
        ("Audit", card.audit or {}, one_line),
    ):
        if values:
            lines += ["", f"## {title}", "", "| | |", "|---|---|", *_rows(values, show)]
    if card.left_out:
        shown = ", ".join(map(_code, card.left_out[:5]))
        more = f" and {len(card.left_out) - 5} more (see `skillpack.json`)" if len(card.left_out) > 5 else ""
        lines += ["", "## Left out", "", f"Changed by training, left at the base's values: {shown}{more}."]
    return "\n".join(lines) + "\n"


def travels(card: PackCard) -> list[tuple[str, str]]:
    """What the pack brings beside its weights, as (what, in words): token rows, tokenizer, how to generate."""
    rows = next((entry for entry in card.entries.values() if isinstance(entry, RowsEntry)), None)
    told = []
    if rows is not None:
        change = (
            f"{rows.added} added" if rows.added else f"the base's last {rows.base_rows - rows.shape[0]} are not used"
        )
        told.append(("token rows", f"{rows.shape[0]}: {change}"))
    names = [key.removeprefix(f"{FOLDER}/") for key in card.files if key.startswith(f"{FOLDER}/")]
    if names:
        kept = f", with the base's {' and '.join(card.from_base)}" if card.from_base else ""
        told.append(("travels along", f"{', '.join(names)}{kept}"))
    return told


def _size(weight: PackBytes) -> str:
    share = f", {weight.total / weight.bf16_delta:.2%} of the delta in bf16" if weight.bf16_delta else ""
    # A fixed width: the length of this text must not depend on the total, which counts this text too.
    return f"{weight.total} bytes in all{share}".ljust(_SIZE_WIDTH)


def score_text(value: Any) -> str:
    """A score in words; what is no score (a mean with its interval and its prompts) is shown as it is written."""
    if isinstance(value, dict) and isinstance(value.get("n"), int):
        parts = [value.get(key) for key in ("mean", "low", "high")]
        numbers = [part for part in parts if isinstance(part, int | float) and abs(part) <= 1]
        if len(numbers) == len(parts):
            mean, low, high = numbers
            return f"{mean:.1%} (95% interval {low:.1%} to {high:.1%}, {value['n']} prompts)"
    return one_line(value)


def _rows(values: Mapping[str, Any], show: Callable[[Any], str] = one_line) -> list[str]:
    shown = itertools.islice(values.items(), _MOST_ROWS)
    rows = [f"| {_plain(one_line(key))} | {_plain(show(value))} |" for key, value in shown]
    more = len(values) - len(rows)
    return [*rows, f"| and {more} more | see `skillpack.json` |"] if more else rows


def _plain(line: str) -> str:
    """A line in which nothing is markup."""
    return _MARKUP.sub(r"\\\1", line)


def _code(text: str) -> str:
    """The text as code. Within backticks nothing is markup but the backtick itself and, in a table, the bar."""
    return f"`{one_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
