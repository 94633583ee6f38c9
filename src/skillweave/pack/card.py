"""Write the card of a pack as Markdown for people: ``README.md``.

Free fields of a card may hold anything, because anyone can write a pack. They are shown as plain text: nothing in them
is interpreted as Markdown or HTML, and long texts are cut, with a note.
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
_LARGEST_FIGURE = 1e9
"""A card with larger numbers in a record of figures was not written by this library."""


READS_ITSELF = (
    "The pack was made for prompts that the plain base reads (prefill: backbone). The {} reads its prompts itself, so "
    "it may answer otherwise than the pack in a weave: score it."
)
"""What to say where a pack becomes something that cannot leave the reading of prompts to the base."""


def card_text(card: PackCard) -> str:
    """Return Markdown that says what the pack is, which base it needs, its size, its scores, and what it leaves out."""
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
        *(f"| {what} | {text} |" for what, text in travels(card)),
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
    """Return (label, text) for what the pack brings besides weights: who reads prompts, token rows, a tokenizer."""
    rows = next((entry for entry in card.entries.values() if isinstance(entry, RowsEntry)), None)
    text = prefill_text(card)
    lines = [] if text is None else [("prompts", text)]
    if rows is not None:
        change = (
            f"{rows.added} added" if rows.added else f"the base's last {rows.base_rows - rows.shape[0]} are not used"
        )
        lines.append(("token rows", f"{rows.shape[0]}: {change}"))
    names = [key.removeprefix(f"{FOLDER}/") for key in card.files if key.startswith(f"{FOLDER}/")]
    if names:
        of_base = f", with the base's {' and '.join(card.from_base)}" if card.from_base else ""
        lines.append(("travels along", f"{', '.join(names)}{of_base}"))
    return lines


def _size(weight: PackBytes) -> str:
    share = f", {weight.total / weight.bf16_delta:.2%} of the delta in bf16" if weight.bf16_delta else ""
    # A fixed width: the length of this text must not depend on the total, which counts this text too.
    return f"{weight.total} bytes in all{share}".ljust(_SIZE_WIDTH)


def score_text(value: Any) -> str:
    """Return a score in words if ``value`` has the form of one (mean, low, high, n), else the value on one line."""
    if isinstance(value, dict) and isinstance(value.get("n"), int):
        parts = [value.get(key) for key in ("mean", "low", "high")]
        numbers = [part for part in parts if isinstance(part, int | float) and abs(part) <= 1]
        if len(numbers) == len(parts):
            mean, low, high = numbers
            return f"{mean:.1%} (95% interval {low:.1%} to {high:.1%}, {value['n']} prompts)"
    return one_line(value)


def refinement_text(record: Any) -> str | None:
    """Return in words what a refinement gained, from ``codec.measured["refine"]``; None if it is not such a record."""
    if not isinstance(record, dict) or not isinstance(record.get("refined"), bool):
        return None
    numbers = {key: record.get(key) for key in ("kl_before", "kl_after", "steps", "best_step", "held_out")}
    known = {key: n for key, n in numbers.items() if isinstance(n, int | float) and abs(n) < _LARGEST_FIGURE}
    if len(known) < len(numbers):
        return None
    thousandths = (1000 * known[key] for key in ("kl_before", "kl_after"))
    before, after = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in thousandths)
    done = f"{known['best_step']} of {known['steps']} steps: KL to the specialist {after} instead of {before}"
    if not record["refined"]:
        done = f"{known['steps']} steps did not help, so the factors are as they were: KL to the specialist {before}"
    shares = record.get("tv_before"), record.get("tv_after")
    if record["refined"] and all(isinstance(share, float) and 0 <= share <= 1 for share in shares):
        done += f", and {shares[1]:.2%} instead of {shares[0]:.2%} of the probability on other tokens"
    served = ", with the base's linear layers in int8" if record.get("backbone") == "int8" else ""
    return f"{done} (KL in thousandths of a nat a token; on {known['held_out']} held-out prompts{served})"


def prefill_text(card: PackCard) -> str | None:
    """Return in words who reads the prompts, and what was measured of it; None if nothing was, and the pack does."""
    record = card.codec.measured.get("prefill")
    record = record if isinstance(record, dict) else {}
    retained, count = record.get("retained"), record.get("held_out")
    known = isinstance(retained, int | float) and abs(retained) < _LARGEST_FIGURE and isinstance(count, int)
    figure = f"{retained:.1%} of the gain" if known else "an unknown share of the gain"
    measured = f" (by the KL to the specialist, on {count} held-out prompts)" if known else ""
    if card.prefill == "backbone":
        return f"the backbone reads the prompts, and the pack keeps {figure}{measured}"
    if not record:
        return None
    return f"the pack reads the prompts itself: with the backbone as their reader it keeps only {figure}{measured}"


def _rows(values: Mapping[str, Any], show: Callable[[Any], str] = one_line) -> list[str]:
    shown = itertools.islice(values.items(), _MOST_ROWS)
    rows = [f"| {_plain(one_line(key))} | {_plain(show(value))} |" for key, value in shown]
    more = len(values) - len(rows)
    return [*rows, f"| and {more} more | see `skillpack.json` |"] if more else rows


def _plain(line: str) -> str:
    """Return the line with every character of markup escaped."""
    return _MARKUP.sub(r"\\\1", line)


def _code(text: str) -> str:
    """Return the text as inline code. Backticks, and bars in a table, have a meaning there, so they are replaced."""
    return f"`{one_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
