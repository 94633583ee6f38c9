"""Does a long job in pieces: each piece is written when it is done, so a kill costs at most one piece."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skillweave.artefact import write_json_lines
from skillweave.files.read import read_json_lines
from skillweave.methods.training.processes import Processes
from skillweave.progress import bar

Work = Callable[[int, Sequence[int]], list[Any]]
"""(number of the piece, indices of its rows) -> one JSON-like value per row."""


def in_pieces(
    path: Path,
    prepare: Callable[[], tuple[list[list[int]], Work]],
    *,
    processes: Processes,
    label: str,
    note: Callable[[list[Any]], str] | None = None,
    trace: bool = True,
) -> list[Any]:
    """One value per row, which is also stored in ``path`` (JSONL, in the order of the rows' indices).

    If the file exists, it is read and nothing else happens.

    - ``prepare()`` returns the pieces and the function that works on one of them.
    - The processes share the pieces. The values of a piece must depend only on its number and its rows; then a run that
      was killed, or that has another number of processes, ends with the same file.
    - ``note(rows so far)`` is shown after the progress bar ``label``. Without a terminal the bar leaves one line at the
      end if ``trace``.
    """
    if not processes.from_first(path.exists):
        parts = path.with_name(f"{path.stem}.parts")
        pieces, work = prepare()
        with bar(label, len(pieces), shown=processes.first, trace=trace) as advance:
            _work_on_share(pieces, work, parts, processes, advance, note)
        processes.wait()
        if processes.first:
            rows: dict[int, Any] = {}
            for number, piece in enumerate(pieces):
                rows.update(zip(piece, read_lines(_part(parts, number)), strict=True))
            write_json_lines(path, (rows[index] for index in sorted(rows)))
            shutil.rmtree(parts, ignore_errors=True)
        processes.wait()
    return read_lines(path)


def read_lines(path: Path) -> list[Any]:
    """The values of a JSONL file that :func:`in_pieces` wrote."""
    return [value for _, value in read_json_lines(path)]


def _work_on_share(
    pieces: list[list[int]],
    work: Work,
    parts: Path,
    processes: Processes,
    advance: Callable[..., None],
    note: Callable[[list[Any]], str] | None,
) -> None:
    """Do the pieces of this process that are not done yet."""
    rows: list[Any] = []
    for number in range(processes.rank, len(pieces), processes.world):
        part = _part(parts, number)
        if not part.exists():
            write_json_lines(part, work(number, pieces[number]))
        if note is not None:
            rows.extend(read_lines(part))
        advance(processes.world, note=note(rows) if note else None)


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.jsonl"
