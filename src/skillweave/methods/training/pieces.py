"""A long job over many rows, done in pieces: each is written when it is done, so that a kill costs one piece."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skillweave.artefact import write_text
from skillweave.files.read import read_json_lines
from skillweave.methods.training.processes import Processes
from skillweave.progress import bar

Work = Callable[[int, Sequence[int]], list[Any]]
"""(number of the piece, indices of its rows) -> one JSON-like value a row."""


def in_pieces(
    path: Path, prepare: Callable[[], tuple[list[list[int]], Work]], *, processes: Processes, label: str,
    note: Callable[[list[Any]], str] | None = None, trace: bool = True,
) -> list[Any]:  # fmt: skip
    """One value for each row, kept in ``path`` (JSONL, in the order of the rows' indices).

    A file that is there is read, not made anew. Else ``prepare()`` gives the pieces and what works on one of them. The
    processes share the pieces, and what a piece gives must depend on nothing but its number and its rows: then a run
    that was killed, or shared otherwise, ends in the same file. ``note(rows so far)`` stands behind the progress bar,
    which leaves a line where nobody watches if ``trace``.
    """
    if not processes.from_first(path.exists):
        parts = path.with_name(f"{path.stem}.parts")
        pieces, work = prepare()
        with bar(label, len(pieces), shown=processes.first, trace=trace) as advance:
            _share(pieces, work, parts, processes, advance, note)
        processes.wait()
        if processes.first:
            rows: dict[int, Any] = {}
            for number, piece in enumerate(pieces):
                rows.update(zip(piece, read_lines(_part(parts, number)), strict=True))
            write_text(path, _lines([rows[index] for index in sorted(rows)]))
            shutil.rmtree(parts, ignore_errors=True)
        processes.wait()
    return read_lines(path)


def read_lines(path: Path) -> list[Any]:
    """The values of a JSONL file that :func:`in_pieces` wrote."""
    return [value for _, value in read_json_lines(path)]


def _share(
    pieces: list[list[int]], work: Work, parts: Path, processes: Processes, advance: Callable[..., None],
    note: Callable[[list[Any]], str] | None,
) -> None:  # fmt: skip
    seen: list[Any] = []
    for number in range(processes.rank, len(pieces), processes.world):
        part = _part(parts, number)
        if not part.exists():
            write_text(part, _lines(work(number, pieces[number])))
        seen.extend(read_lines(part) if note else [])
        advance(processes.world, note=note(seen) if note else None)


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.jsonl"


def _lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
