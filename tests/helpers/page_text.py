"""The text of a page or a table as a person reads it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from rich.console import Console

from skillweave.report import Table


class _Page(HTMLParser):
    """Checks that elements are closed in the right order, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_text(file: Path) -> str:
    """The text of an HTML page; fails if an element is not closed."""
    page = _Page()
    page.feed(file.read_text())
    assert page.open == []
    return page.text


def drawn(table: Table, width: int = 80) -> str:
    """A table as a terminal of that width shows it."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table.rich())
    return capture.get()
