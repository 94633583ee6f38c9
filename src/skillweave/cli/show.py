"""What the commands print on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from skillweave.report import human_bytes, skill_table

out = Console(highlight=False)


def show_report(report: dict[str, Any], folder: Path) -> None:
    """The table of a build, what it costs in memory, and where the rest lies."""
    memory, router = report["memory"], report["router"]
    out.print()
    out.print(skill_table(report).rich(), markup=False)
    out.print(
        f"In memory: base {human_bytes(memory['base_bytes'])}, weave {human_bytes(memory['weave_bytes'])} "
        f"({memory['weave_bytes'] / memory['base_bytes']:.2f}x), "
        f"{len(report['skills'])} separate models {human_bytes(memory['separate_bytes'])}."
    )
    out.print(
        f"Router: {100 * router['accuracy']:.1f}% of the test prompts to their own skill, "
        f"{100 * router['abstained']:.1f}% left to the base."
    )
    out.print(f"The weave is in {folder}; the report in {folder / 'report.html'}.", soft_wrap=True)
    out.print(f'Ask it something: skillweave generate {folder} "your prompt"', soft_wrap=True, markup=False)


def show_side_by_side(rows: Sequence[Any]) -> None:
    """One mixed batch: the prompt, the route taken, what the base says and what the weave says."""
    table = RichTable(title="One mixed batch, one process", title_justify="left", show_lines=True)
    table.add_column("prompt", ratio=4)
    table.add_column("route", ratio=1)
    table.add_column("base says", ratio=3)
    table.add_column("the weave says", ratio=3)
    for row in rows:
        cells = [row.prompt, row.route, row.base, row.weave]
        table.add_row(*(_plain(cell) for cell in cells))
    out.print()
    out.print(table)


def _plain(text: str, limit: int = 160) -> str:
    text = " ".join(text.split()).replace("[", "\\[")
    return text if len(text) <= limit else text[: limit - 1] + "…"
