"""Standard output of the commands: one console, and the simplest ways to print on it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.table import Table as RichTable
from rich.text import Text

from skillweave.terminal import SafeConsole, printable

out = SafeConsole()
"""The console on standard output, for results. Notes and progress go to :data:`skillweave.progress.console`."""


def is_first_process() -> bool:
    """Whether this is the first process of ``torchrun``, which writes and prints for all; True without it."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print one line of a result; under ``torchrun`` only the first process does."""
    if is_first_process():
        out.print(text, soft_wrap=True)


def show_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns, without the control characters that a card, file or model may contain."""
    table = RichTable.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")  # a fingerprint is one long word
    for name, value in facts:
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    out.print(table)
