"""The console for notes, and progress bars."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from skillweave.terminal import SafeConsole

console = SafeConsole(stderr=True)
"""The console on standard error for progress and notes; standard output has only the result of a command."""


def share_of(count: int, total: int, what: str) -> str:
    """``"12 of 64 answers (19%)"``, for a message that says what was left out; 1 of 641 is "under 1%", and never 0%."""
    share = count / max(1, total)
    shown = "under 1%" if 0 < share < 0.01 else "over 99%" if 0.99 < share < 1 else f"{share:.0%}"
    return f"{count:,} of {total:,} {what} ({shown})"


_SAID: set[str] = set()


def say_once(text: str) -> None:
    """Print a note on standard error, but only once in this process; of several processes only the first prints.

    A task, for example, is read by the build and again by each method, and each would report the same rows.
    """
    if text not in _SAID and os.environ.get("RANK", "0") == "0":
        _SAID.add(text)
        with contextlib.suppress(OSError):  # the disk of a log may be full, which must not stop what the note is about
            console.print(f"  {text}", soft_wrap=True)


@contextlib.contextmanager
def bar(
    label: str, total: int | None, *, shown: bool = True, trace: bool = True, in_bytes: bool = False
) -> Iterator[Callable[..., None]]:
    """Show a progress bar; the yielded function advances it: ``advance(n=1, note="solved 40%")``.

    Without a terminal only one line is printed, at the end (if ``trace``). ``shown=False`` prints nothing.
    ``in_bytes`` says that the total counts bytes.
    """
    if not shown:
        yield lambda n=1, note=None: None
        return
    columns = (
        TextColumn("  {task.description:<28}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # In a log file or CI a redrawn bar is noise: the label and the final note are enough.
    live = console.is_terminal
    with Progress(*columns, console=console, disable=not live) as progress:
        task = progress.add_task(label, total=total, note="")
        latest = ""

        def advance(n: int = 1, note: str | None = None) -> None:
            nonlocal latest
            latest = latest if note is None else note
            progress.update(task, advance=n, note=latest)

        yield advance
    if not live and trace:
        console.print(f"  {label}{f': {latest}' if latest else ''}")
