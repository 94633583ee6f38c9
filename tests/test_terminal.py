"""Printed text cannot control the terminal, wherever it comes from and however it is printed."""

from __future__ import annotations

import io
import json

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from skillweave.progress import bar
from skillweave.terminal import SafeConsole, for_file, harmless, harmless_json, printable

EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31mb\rc\x08\x7f\u202ed\u2066e\u200bf\u2028g\ud800h\U000e0041i"
SHOWN = r"a\x1b]0;owned\x07\x1b[2J\x9b31mb\rc\x08\x7f\u202ed\u2066e\u200bf\u2028g\ud800h\U000e0041i"
FINE = "é 中文　x y\tz\n👨‍👩‍👧 می‌خواهم ￥ "


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_steers_is_shown_and_the_rest_stays() -> None:
    assert harmless(EVIL) == SHOWN
    assert harmless(FINE) == FINE
    assert printable("a\nb\x1b") == r"a b\x1b"


def test_json_keeps_its_value() -> None:
    value = {EVIL: [EVIL, FINE, 1]}
    text = harmless_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not any(character in text for character in "\x9b\u202e\ud800\u200b\U000e0041")


def test_a_file_gets_the_text_as_it_is() -> None:
    assert for_file(EVIL, io.StringIO()) == EVIL
    assert for_file(EVIL, _Terminal()) == SHOWN


def _tree() -> Tree:
    tree = Tree(Text(EVIL))
    tree.add(EVIL)
    return tree


def _table() -> Table:
    table = Table(title=EVIL, caption=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL, style="bold"))
    return table


@pytest.mark.parametrize(
    "shown", [EVIL, Text(EVIL, style="red"), Text.assemble((EVIL, "dim")), _tree(), _table(), Panel(EVIL, title=EVIL)]
)
@pytest.mark.parametrize("live", [False, True])
def test_nothing_printed_steers(shown: object, live: bool) -> None:
    """The console writes the same sequences (colours) as for a harmless text, and no others."""
    file = io.StringIO()
    SafeConsole(file=file, force_terminal=live, width=500, color_system="truecolor").print(shown)
    said = file.getvalue()
    assert "\x1b]" not in said
    assert "\x1b[2J" not in said
    assert not set(said) & set("\x07\x9b\r\x08\x7f\u202e\u2066\u200b\u2028\ud800\U000e0041")
    assert "owned" in said


def test_no_text_is_markup() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, width=100)
    console.print("[bold]x[/bold] :smile: [/] [link=http://x]y[/link]")
    assert file.getvalue() == "[bold]x[/bold] :smile: [/] [link=http://x]y[/link]\n"


def test_a_bar_shows_labels_and_notes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr("skillweave.progress.console", SafeConsole(file=file, force_terminal=True, width=200))
    with bar(f"[red]{EVIL}", 2) as advance:
        advance(note=f"[/x] {EVIL}")
    assert "\x1b]" not in file.getvalue()
    assert "[red]a" in file.getvalue()
    assert "[/x] a" in file.getvalue()
