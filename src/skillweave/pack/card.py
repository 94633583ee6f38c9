"""The card of a pack as a person reads it: ``README.md``."""

from __future__ import annotations

from typing import Any

from skillweave.delta.carry import FOLDER
from skillweave.pack.schema import PackBytes, PackCard, RowsEntry


def card_text(card: PackCard) -> str:
    """Markdown: what the pack is, what it goes on, what it weighs, how it scored, and what was left out."""
    kinds = [entry.kind for entry in card.entries.values()]
    lines = [
        f"# {card.name}",
        "",
        f"A skillpack: a small change to one base model, made by `{card.method}`, zipped by `{card.codec.name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| base | `{card.base.ref}` |",
        f"| fingerprint | `{card.base.fingerprint}` |",
        f"| tensors | {', '.join(f'{kinds.count(kind)} {kind}' for kind in sorted(set(kinds))) or 'none'} |",
        f"| size | {_size(card.bytes)} |",
        *(f"| {what} | {told} |" for what, told in travels(card)),
        *_rows(card.codec.settings),
        "",
        "The pack loads on this base only.",
    ]
    scores = {arm: _score(value) for arm, value in card.scores.items()}
    for title, values in (("Data", card.data), ("Scores", scores), ("Audit", card.audit or {})):
        if values:
            lines += ["", f"## {title}", "", "| | |", "|---|---|", *_rows(values)]
    if card.left_out:
        shown = ", ".join(f"`{name}`" for name in card.left_out[:5])
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
    return f"{weight.total} bytes in all{share}"


def _score(value: Any) -> str:
    if not (isinstance(value, dict) and {"mean", "low", "high", "n"} <= set(value)):
        return str(value)
    return f"{value['mean']:.1%} (95% interval {value['low']:.1%} to {value['high']:.1%}, {value['n']} prompts)"


def _rows(values: dict[str, Any]) -> list[str]:
    return [f"| {key} | {str(value)[:200].replace('|', chr(92) + '|')} |" for key, value in values.items()]
