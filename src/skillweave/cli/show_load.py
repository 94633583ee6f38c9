"""Print what `skillweave bench serve` measured."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from skillweave.cli.output import out, say

_ROWS = {
    "first_token_seconds": "first token",
    "token_seconds": "each further token",
    "total_seconds": "whole answer",
}


def show_load(figures: dict[str, Any]) -> None:
    """Print the percentiles, the throughput and the errors of a load."""
    table = RichTable(box=SIMPLE_HEAD, title="Milliseconds of the answered requests", title_justify="left")
    for column in ("", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if not column else "right")
    for key, label in _ROWS.items():
        values = figures[key]
        cells = ["-"] * 3 if values is None else [f"{1000 * value:,.1f}" for value in values.values()]
        table.add_row(label, *cells)
    out.print(table)
    say(
        f"{figures['answered']:,} of {figures['requests']:,} requests answered in {figures['seconds']:.1f} s: "
        f"{figures['requests_per_second']:.2f} requests/s, {figures['tokens_per_second']:.1f} tokens/s "
        f"({figures['prompt_tokens']:,} tokens read, {figures['completion_tokens']:,} written)"
    )
    if figures["uncounted"]:
        say(
            f"{figures['uncounted']:,} answers came without a count of tokens: the pieces of their streams were counted"
        )
    for status, count in figures["errors"].items():
        say(f"failed with {status}: {count:,}")
