"""The tools that come with the library: ``calculator``, ``python`` and ``search``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from skillweave.errors import UserError, nearest
from skillweave.tools.builtin.calculator import calculator
from skillweave.tools.builtin.python import Python
from skillweave.tools.builtin.search import Search
from skillweave.tools.toolbox import Toolbox


def _calculator(box: Toolbox, _corpus: Path | None) -> None:
    box.register(calculator)


def _python(box: Toolbox, _corpus: Path | None) -> None:
    box.register_stateful(lambda: Python().python)


def _search(box: Toolbox, corpus: Path | None) -> None:
    if corpus is None:
        raise UserError('the tool \'search\' needs a corpus: name a JSONL file of rows {"title": ..., "text": ...}')
    box.register(Search.from_jsonl(corpus).search)


TOOLS: dict[str, Callable[[Toolbox, Path | None], None]] = {
    "calculator": _calculator,
    "python": _python,
    "search": _search,
}
"""For each built-in tool a function that adds it to a toolbox. The path is that of the corpus for ``search``."""


def add_tools(box: Toolbox, names: Iterable[str], corpus: Path | None = None) -> None:
    """Add built-in tools to a toolbox, by their names. Raises :class:`UserError` for an unknown name."""
    for name in names:
        if name not in TOOLS:
            raise UserError(f"there is no built-in tool '{name}'; {nearest(name, TOOLS)}")
        TOOLS[name](box, corpus)


__all__ = ["TOOLS", "Python", "Search", "add_tools", "calculator"]
