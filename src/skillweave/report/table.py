"""A table for the terminal, for Markdown and for HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from skillweave.report.escape import markdown_text
from skillweave.terminal import harmless


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column is left-aligned, the others are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [list(map(markdown_text, self.header)), rule, *(list(map(markdown_text, row)) for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self) -> str:
        """Return the table in HTML."""

        def line(tag: str, cells: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(harmless(cell))}</{tag}>" for cell in cells) + "</tr>"

        body = "\n".join(line("td", row) for row in self.rows)
        return f"<table>\n<thead>{line('th', self.header)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def rich(self, title: str | None = None) -> RichTable:
        """Return the table for the terminal. It has no vertical rules, to leave the width to the figures."""
        table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index, name in enumerate(self.header):
            table.add_column(name, justify="right" if index else "left", overflow="ellipsis" if index else "fold")
        for row in self.rows:
            table.add_row(*map(Text, row))  # a plain Text, so that "[x]" in a cell is not markup
        return table
