"""Two passes over the data, in several processes: count the records into a sketch, then score each.

Chunks of records go to the processes and come back in order, and only a few are under way at a time, so the memory does
not grow with the data.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from skillweave.audit.data.read import AuditRow, Chunk, Malformed, parse_chunk
from skillweave.audit.data.score import DataReference, Scored, matrix, prepare, score_row
from skillweave.audit.data.sketch import Counts, Sketch, Whole, counted
from skillweave.files.read import is_folder

T = TypeVar("T")
R = TypeVar("R")

SMALL = 2**21
"""Bytes of data for which one process is faster than several."""


@dataclass(frozen=True)
class ScoredChunk:
    """The records of one chunk with their signals (n, signals), combined scores (n,) and p-values (n,).

    Without a reference there are no scores: then ``scores`` and ``p`` are NaN.
    """

    rows: list[AuditRow]
    scored: list[Scored]
    values: np.ndarray
    own_p: np.ndarray
    scores: np.ndarray
    p: np.ndarray
    malformed: list[Malformed]


@dataclass(frozen=True)
class ScoreTask:
    """What a process needs to score a chunk: where the tables of the sketch lie, and the reference."""

    tables: Path
    records: int
    refusals: int
    columns: Mapping[str, str]
    reference: DataReference | None

    def whole(self) -> Whole:
        """Return the data set as a whole, read once in each process."""
        if _WHOLE.get("tables") != self.tables:
            _WHOLE["whole"] = Whole.of(Sketch.load(self.tables, self.records, self.refusals))
            _WHOLE["tables"] = self.tables
        whole = _WHOLE["whole"]
        assert isinstance(whole, Whole)
        return whole


_WHOLE: dict[str, Path | Whole] = {}


def count_chunk(task: Mapping[str, str], chunk: Chunk) -> Counts:
    """Return what a chunk adds to the sketch; ``task`` are the columns."""
    return counted(map(prepare, parse_chunk(chunk, task)[0]))


def score_chunk(task: ScoreTask, chunk: Chunk) -> ScoredChunk:
    """Return the scored records of a chunk."""
    rows, malformed = parse_chunk(chunk, task.columns)
    return scored_rows(rows, task.whole(), task.reference, malformed)


def scored_rows(
    rows: list[AuditRow], whole: Whole, reference: DataReference | None, malformed: list[Malformed]
) -> ScoredChunk:
    """Return records with their signals and, with a reference, their scores."""
    scored = [score_row(row, whole) for row in rows]
    values = matrix(scored)
    if reference is None or not rows:
        empty = np.full(len(rows), np.nan)
        return ScoredChunk(rows, scored, values, np.full(values.shape, np.nan), empty, empty, malformed)
    scores = reference.score(values)
    return ScoredChunk(rows, scored, values, reference.own_p(values), scores, reference.p_values(scores), malformed)


def mapped(function: Callable[[T, Chunk], R], task: T, chunks: Iterable[Chunk], workers: int) -> Iterator[R]:
    """Yield ``function(task, chunk)`` for each chunk, in order, computed by ``workers`` processes."""
    if workers == 1:
        for chunk in chunks:
            yield function(task, chunk)
        return
    # A forked process has the modules already. The others would import the caller's main module again.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))
    under_way: deque[Future[R]] = deque()
    try:
        for chunk in chunks:
            under_way.append(pool.submit(function, task, chunk))
            if len(under_way) >= 3 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def usual_workers(*paths: Path) -> int:
    """Return how many processes the data are worth: one for little data, else one for each core of this process."""
    sizes = [
        file.stat().st_size
        for path in paths
        for file in (path.rglob("*") if is_folder(path) else [path])
        if file.is_file()
    ]
    return 1 if sum(sizes) < SMALL else len(os.sched_getaffinity(0))
