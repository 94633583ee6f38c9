"""Print what is in a pack or a weave, for ``skillweave inspect``. Only cards and headers are read, no tensors.

Deltas, adapters and models are in :mod:`skillweave.cli.described`.
"""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from skillweave.cli.output import out, show_facts
from skillweave.pack.card import refinement_text, score_text, travels
from skillweave.pack.schema import ROWS, MixedEntry, PackCard, StackedEntry
from skillweave.pack.stored import read_stored
from skillweave.terminal import one_line
from skillweave.units import human_bytes
from skillweave.weave.card import WeaveCard, check_part, pack_card

_MOST_SCORES = 50
_NAMED = 8
"""Most left-out tensors that are shown by name."""


def show_pack(card: PackCard, folder: Path, *, tensors: bool = False) -> None:
    """Print identity, codec, bytes by part and scores of a pack, and with ``tensors`` also every tensor."""
    size, refined = card.bytes, refinement_text(card.codec.measured.get("refine"))
    settings = one_line(", ".join(f"{key} {_setting(value)}" for key, value in card.codec.settings.items()))
    facts = [
        ("pack", f"{card.name} ({folder})"),
        ("base", f"{one_line(card.base.ref)} ({card.base.fingerprint[:23]}...)"),
        ("method", card.method),
        ("codec", f"{card.codec.name} ({settings})"),
        ("tensors", f"{_changed(card)} changed, {len(card.left_out)} left out"),
        *_left_out_facts(card),
        *([("refine", refined)] if refined else []),
        (
            "bytes",
            f"{size.total:,} on disk"
            + (f", 1/{size.bf16_delta / size.total:.1f} of the bf16 delta" if size.bf16_delta and size.total else ""),
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
    facts += [(f"score, {one_line(arm, 40)}", score_text(score)) for arm, score in card.scores.items()][:_MOST_SCORES]
    if len(card.scores) > _MOST_SCORES:
        facts.append(("", f"and {len(card.scores) - _MOST_SCORES} more scores, in skillpack.json"))
    show_facts(facts)
    if tensors:
        table = RichTable(title="Tensors", title_justify="left")
        for column in ("tensor", "kind", "shape", "rank", "bits"):
            table.add_column(column, overflow="fold")
        for name, entry in card.entries.items():
            bits = str(getattr(entry, "bits", ""))
            if isinstance(entry, StackedEntry):
                rank = f"{min(entry.ranks)} to {max(entry.ranks)}"
            elif isinstance(entry, MixedEntry):
                rank, bits = (" + ".join(str(band[part]) for band in entry.bands) for part in (1, 0))
            else:
                rank = str(getattr(entry, "rank", ""))
            table.add_row(name, entry.kind, "x".join(map(str, entry.shape)), rank, bits)
        out.print(table)


def _changed(card: PackCard) -> int:
    """The number of base tensors that a pack changes; an embedding and the rows added to it count as one."""
    return len({name.removesuffix(ROWS) if entry.kind == "rows" else name for name, entry in card.entries.items()})


def _setting(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else one_line(value, 40)


def _left_out_facts(card: PackCard) -> list[tuple[str, str]]:
    """The left-out tensors with their share of the change: the largest by name, and the number of the others."""
    measured = card.codec.measured
    total, shares = measured.get("left_out_share"), measured.get("left_out")
    facts = []
    # A stranger's card may have anything in these fields: only a list of shares is shown as one.
    if not isinstance(shares, dict) or not all(isinstance(share, int | float) for share in shares.values()):
        shares = {}
    if shares and isinstance(total, int | float):
        largest = sorted(shares.items(), key=lambda item: -item[1])
        named = ", ".join(f"{one_line(name)} ({share:.2g} of it)" for name, share in largest[:_NAMED])
        more = f" and {len(largest) - _NAMED} more tensors" if len(largest) > _NAMED else ""
        facts.append(("left out", f"{total:.1%} of the change (of its squared norm): {named}{more}"))
    else:
        shares = {}
    if others := [name for name in card.left_out if name not in shares]:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        facts.append(("left out", ", ".join(map(one_line, others[:_NAMED])) + more))
    return facts


def _carried_bytes(card: PackCard, folder: Path) -> str:
    names = [name for name in card.files if name.startswith("files/")]
    sizes = [(folder / name).stat().st_size for name in names if (folder / name).is_file()]
    return f"{sum(sizes):,} bytes of the metadata; the pack answers with them, and unzip writes them"


def show_weave(card: WeaveCard, folder: Path) -> None:
    """Print the base and the router of a weave, and each pack's bytes on disk by part."""
    table = RichTable(box=SIMPLE_HEAD)
    table.add_column("pack", overflow="fold")
    for column in ("matrices", "scales", "whole", "metadata", "total", "of bf16"):
        table.add_column(column, justify="right")
    for name in card.packs:
        check_part(folder, card, pack_card(name))
        size = read_stored(folder / "packs" / name)[0].bytes
        parts = (size.matrices, size.scales, size.whole, size.metadata, size.total)
        share = f"1/{size.bf16_delta / size.total:.1f}" if size.bf16_delta and size.total else "-"
        table.add_row(Text(name), *map(human_bytes, parts), share)
    show_facts(
        [
            ("weave", str(folder)),
            ("base", f"{one_line(card.base.ref)} ({card.base.fingerprint[:23]}...)"),
            *_backbone_facts(card, folder),
            ("router", "yes" if card.router else "no"),
            ("dtype", card.dtype or "as the base's files"),
            *([("linear layers", card.backbone_codes)] if card.backbone_codes else []),
            ("budget", f"{human_bytes(card.budget)} in memory, base included" if card.budget else "none"),
        ]
    )
    out.print(table)


def _backbone_facts(card: WeaveCard, folder: Path) -> list[tuple[str, str]]:
    """How the backbone's delta was made and what it changes; an empty list for a weave without one."""
    if card.backbone is None:
        return []
    from skillweave.weave.backbone import read_backbone

    delta = read_backbone(folder, card)
    method = one_line(delta.provenance.get("method", "a delta"), 40)
    return [
        ("backbone", f"the base after {method} ({card.backbone.fingerprint[:23]}...)"),
        ("", f"{len(delta.names())} tensors changed, {human_bytes(delta.nbytes)} on disk; every pack belongs on it"),
    ]
