"""What is in a pack or a weave, as ``skillweave inspect`` shows it: cards and headers, no tensor is read.

Deltas, adapters and bases are in :mod:`skillweave.cli.described`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from skillweave.pack.card import travels
from skillweave.pack.schema import PackCard
from skillweave.pack.stored import read_stored
from skillweave.progress import printable
from skillweave.units import human_bytes
from skillweave.weave.card import WeaveCard

# Names and paths are shown as they are: a "[x]" or ":x:" in them is no markup.
out = Console(highlight=False, markup=False, emoji=False)


def show_pack(card: PackCard, folder: Path, *, tensors: bool = False) -> None:
    """What is in a pack: identity, codec, bytes by part, scores; every tensor where asked."""
    size = card.bytes
    settings = ", ".join(f"{key} {value}" for key, value in card.codec.settings.items())
    facts = [
        ("pack", f"{card.name} ({folder})"),
        ("base", f"{card.base.ref} ({card.base.fingerprint[:23]}...)"),
        ("method", card.method),
        ("codec", f"{card.codec.name} ({settings})"),
        ("tensors", f"{len(card.entries)} changed, {len(card.left_out)} left out"),
        (
            "bytes",
            f"{size.total:,} on disk"
            + (f", 1/{size.bf16_delta / size.total:.1f} of the bf16 delta" if size.bf16_delta else ""),
        ),
        (
            "",
            f"matrices {size.matrices:,}, scales {size.scales:,}, "
            f"whole tensors {size.whole:,}, metadata {size.metadata:,}",
        ),
    ]
    facts += travels(card)
    if card.from_base or any(name.startswith("files/") for name in card.files):
        facts.append(("", _carried_bytes(card, folder)))
    facts += [(f"score, {arm}", _score(score)) for arm, score in card.scores.items()]
    show_facts(facts)
    if tensors:
        table = RichTable(title="Tensors", title_justify="left")
        for column in ("tensor", "kind", "shape", "rank", "bits"):
            table.add_column(column, overflow="fold")
        for name, entry in card.entries.items():
            rank, bits = (str(getattr(entry, key, "")) for key in ("rank", "bits"))
            table.add_row(Text(printable(name)), entry.kind, "x".join(map(str, entry.shape)), rank, bits)
        out.print(table)


def _carried_bytes(card: PackCard, folder: Path) -> str:
    names = [name for name in card.files if name.startswith("files/")]
    sizes = [(folder / name).stat().st_size for name in names if (folder / name).is_file()]
    return f"{sum(sizes):,} bytes of the metadata; the pack answers with them, and unzip writes them"


def _score(score: Any) -> str:
    """A score in words; whatever else a card holds there is shown as it is, shortened."""
    if isinstance(score, dict) and all(isinstance(score.get(key), int | float) for key in ("mean", "n")):
        return f"{100 * score['mean']:.1f}% ({score['n']} prompts)"
    return str(score)[:200]


def show_weave(card: WeaveCard, folder: Path) -> None:
    """What is in a weave: base, router, and each pack's bytes on disk, by part."""
    table = RichTable(box=SIMPLE_HEAD)
    table.add_column("pack", overflow="fold")
    for column in ("matrices", "scales", "whole", "metadata", "total", "of bf16"):
        table.add_column(column, justify="right")
    for name in card.packs:
        size = read_stored(folder / "packs" / name)[0].bytes
        parts = (size.matrices, size.scales, size.whole, size.metadata, size.total)
        share = f"1/{size.bf16_delta / size.total:.1f}" if size.bf16_delta else "-"
        table.add_row(Text(printable(name)), *map(human_bytes, parts), share)
    show_facts(
        [
            ("weave", str(folder)),
            ("base", f"{card.base.ref} ({card.base.fingerprint[:23]}...)"),
            *_backbone_facts(card, folder),
            ("router", "yes" if card.router else "no"),
            ("dtype", card.dtype or "as the base's files"),
            ("budget", f"{human_bytes(card.budget)} in memory, base included" if card.budget else "none"),
        ]
    )
    out.print(table)


def _backbone_facts(card: WeaveCard, folder: Path) -> list[tuple[str, str]]:
    """What is laid on the base before any pack is: how it was made, what it changes; nothing where there is none."""
    if card.backbone is None:
        return []
    from skillweave.weave.backbone import read_backbone

    delta = read_backbone(folder)
    method = delta.provenance.get("method", "a delta")
    return [
        ("backbone", f"the base after {method} ({card.backbone.fingerprint[:23]}...)"),
        ("", f"{len(delta.names())} tensors changed, {human_bytes(delta.nbytes)} on disk; every pack stands on it"),
    ]


def show_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Two columns. What a card, a file or a model says is shown without control characters."""
    table = RichTable.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")  # a fingerprint is one long word
    for name, value in facts:
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    out.print(table)
