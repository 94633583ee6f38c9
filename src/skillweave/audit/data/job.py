"""Audit a data set: two passes over it, thresholds from clean records, and the files of the report."""

from __future__ import annotations

import heapq
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np

from skillweave.artefact import atomic_folder
from skillweave.audit.data.config import DataAuditConfig
from skillweave.audit.data.page import write_report
from skillweave.audit.data.passes import (
    ScoredChunk,
    ScoreTask,
    count_chunk,
    mapped,
    score_chunk,
    scored_rows,
    usual_workers,
)
from skillweave.audit.data.read import AuditRow, Malformed, check_columns, chunks, has_splits, parse_chunk
from skillweave.audit.data.result import DataAudit, Suspect, groups_of
from skillweave.audit.data.score import SIGNALS, DataReference, reference_from, shipped_reference, whole_of
from skillweave.audit.data.sketch import Sketch
from skillweave.audit.statistics import least_reference, promised_rate
from skillweave.errors import UserError
from skillweave.files.disk import temporary_folder
from skillweave.files.read import is_folder, regular_file
from skillweave.progress import bar

REASON = 0.05
"""A signal is named as a reason if its own p-value is at most this."""
_MOST_SPANS = 20
_MOST_SUSPECTS = 1000
"""Suspects whose prompts are kept in memory, to be grouped by what they share."""
_LONGEST_KEPT = 20_000
_MOST_CLEAN = 200_000
_MOST_MALFORMED = 20
"""Malformed records that report.json names; all are in malformed.jsonl."""


def audit_data(config: DataAuditConfig) -> DataAudit:
    """Audit the data and write the report into ``config.out``. Returns what was found.

    Raises :class:`UserError` if there are no data, if no record can be read, or if the clean records are too few for
    the false-positive rate.
    """
    began = time.monotonic()
    check_columns(config.columns)
    data = _existing(config.data)
    clean = None if config.clean is None else _existing(config.clean)
    if "split" in config.model_fields_set and not any(map(has_splits, filter(None, (data, clean)))):
        raise UserError(f"--split {config.split}: {data} has no splits, all its records are read: leave it out")
    if clean is None:
        _check_shipped(config.fpr)
    workers = config.workers or usual_workers(*[path for path in (data, clean) if path is not None])
    sketch, size, clean_size = _counted(config, data, clean, workers)
    with temporary_folder(sketch.save) as folder:
        task = ScoreTask(folder, sketch.records, sketch.refusals, config.columns, None)
        if clean is None:
            reference, clean_spent = shipped_reference(), 0
        else:
            _check_enough(clean_size, config.fpr, config.clean)
            reference = _own_reference(config, clean, clean_size, task, workers)
            clean_spent = clean_size
        task = ScoreTask(task.tables, task.records, task.refusals, config.columns, reference)
        threshold = reference.threshold(config.fpr)
        with atomic_folder(config.out) as out:
            audit = _scored(config, data, size, task, threshold, workers, out)
            audit.clean_records = clean_spent
            audit.seconds = time.monotonic() - began
            write_report(out, audit)
    return audit


def score_records(rows: Sequence[AuditRow]) -> ScoredChunk:
    """Return records in memory with their signals, scores and p-values, compared with each other as one data set."""
    return scored_rows(list(rows), whole_of(rows), shipped_reference(), [])


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    return path if is_folder(path) else regular_file(path, "a data file, or a folder of data")


def _counted(config: DataAuditConfig, data: Path, clean: Path | None, workers: int) -> tuple[Sketch, int, int]:
    """The sketch of the data and of the clean records together, and how many there are of each."""
    sketch, sizes = Sketch.empty(), []
    with bar("audit data: count", None) as advance:
        for path in (data, clean):
            before = sketch.records
            for counts in mapped(
                count_chunk, config.columns, () if path is None else chunks(path, config.split), workers
            ):
                sketch.add(counts)
                advance(counts.records, note=f"{sketch.records:,} records")
            sizes.append(sketch.records - before)
            if path is not None and not sizes[-1]:
                raise UserError(_no_record(path, config))
    return sketch, sizes[0], sizes[1]


def _no_record(path: Path, config: DataAuditConfig) -> str:
    """Why no record of the data could be read: the first reason."""
    for chunk in chunks(path, config.split):
        for bad in parse_chunk(chunk, config.columns)[1]:
            return f"{path} has no record that can be read; the first: line {bad.line}: {bad.reason}"
    return f"{path} has no record: name the data"


def _check_shipped(fpr: float) -> None:
    size, need = min(map(len, shipped_reference().combined.values())), least_reference(fpr)
    if size < need:
        raise UserError(
            f"--fpr {fpr:g}: the shipped reference has {size:,} clean records of each family, and this rate takes "
            f"{need:,}. Give --fpr {promised_rate(size):g} or more, or --clean with {2 * need:,} records that you trust"
        )


def _check_enough(records: int, fpr: float, name: str | None) -> None:
    need = least_reference(fpr)
    if records // 2 < need:
        raise UserError(
            f"{name} has {records:,} clean records. Half of them set the threshold, and a false-positive rate of "
            f"{fpr:g} takes {need:,} for that: give {2 * need:,} clean records, "
            f"--fpr {promised_rate(records // 2):g} or more, or leave --clean out to use the shipped reference"
        )


def _own_reference(config: DataAuditConfig, clean: Path, size: int, task: ScoreTask, workers: int) -> DataReference:
    """The reference that the user's own clean records make. Their weights are those of the shipped one."""
    parts, kept = [], 0
    with bar("audit data: clean", size) as advance:
        for chunk in mapped(score_chunk, task, chunks(clean, config.split), workers):
            advance(len(chunk.rows))
            if kept < _MOST_CLEAN:
                parts.append(chunk.values)
                kept += len(chunk.values)
    return reference_from(
        {"clean sample": np.concatenate(parts)},
        shipped_reference().combination,
        name=f"your clean sample {clean} ({kept:,} of {size:,} records)",
        made_by=f"--clean {clean}",
        most=20_000,
    )


def _scored(
    config: DataAuditConfig, data: Path, size: int, task: ScoreTask, threshold: float, workers: int, out: Path
) -> DataAudit:
    """Score each record, write records.jsonl and malformed.jsonl, and keep what the report shows."""
    assert task.reference is not None
    audit = DataAudit(config=config, reference=task.reference, threshold=threshold)
    kept: list[tuple[float, int, Suspect]] = []
    order = count()
    with (
        bar("audit data: score", size) as advance,
        open(out / "records.jsonl", "w", encoding="utf-8") as records,
        open(out / "malformed.jsonl", "w", encoding="utf-8") as malformed,
    ):
        for chunk in mapped(score_chunk, task, chunks(data, config.split), workers):
            for bad in chunk.malformed:
                _note_malformed(audit, bad, malformed)
            for line, row in _lines(chunk, threshold):
                records.write(json.dumps(line, ensure_ascii=False) + "\n")
                _note(audit, line, row)
                if len(kept) < _MOST_SUSPECTS or line["score"] > kept[0][0]:
                    suspect = Suspect(line, row.prompt[:_LONGEST_KEPT], row.answer[:_LONGEST_KEPT])
                    entry = (line["score"], -next(order), suspect)
                    (heapq.heappush if len(kept) < _MOST_SUSPECTS else heapq.heappushpop)(kept, entry)
            audit.over += (chunk.own_p <= config.fpr).sum(axis=0)
            audit.said += (~np.isnan(chunk.values)).sum(axis=0)
            advance(len(chunk.rows), note=f"{audit.flagged:,} flagged")
    if audit.records != size:
        raise UserError(f"{data} changed while it was read: {size:,} records, then {audit.records:,}. Audit it again")
    audit.suspects = [suspect for _, _, suspect in sorted(kept, key=lambda entry: entry[:2], reverse=True)]
    audit.groups = groups_of([suspect for suspect in audit.suspects if suspect.line["flagged"]])
    return audit


def _lines(chunk: ScoredChunk, threshold: float) -> Iterator[tuple[dict[str, Any], AuditRow]]:
    """The lines of records.jsonl for a chunk, each with its record."""
    names = list(SIGNALS)
    for at, row in enumerate(chunk.rows):
        own = chunk.own_p[at].tolist()
        reasons = [
            {
                "signal": names[i],
                "p": _number(own[i]),
                "says": SIGNALS[names[i]],
                "spans": chunk.scored[at].spans[i][:_MOST_SPANS],
            }
            for i in sorted(range(len(names)), key=lambda i: own[i])
            if own[i] <= REASON
        ]
        line = {
            "file": row.file,
            "line": row.line,
            "digest": row.digest,
            "id": row.id,
            "source": row.source,
            "flagged": bool(chunk.scores[at] > threshold),
            "score": _number(chunk.scores[at]),
            "p": _number(chunk.p[at]),
            "signals": {name: _number(value) for name, value in zip(names, chunk.values[at].tolist(), strict=True)},
            "reasons": reasons,
        }
        yield line, row


def _note(audit: DataAudit, line: dict[str, Any], row: AuditRow) -> None:
    audit.records += 1
    audit.flagged += line["flagged"]
    audit.without_answer += not row.answer.strip()
    audit.cut += row.cut
    audit.with_other_parts += row.other_parts > 0
    if row.source is not None and (row.source in audit.sources or len(audit.sources) < _MOST_SUSPECTS):
        audit.sources[row.source] += 1
        audit.flagged_sources[row.source] += line["flagged"]


def _note_malformed(audit: DataAudit, bad: Malformed, file: IO[str]) -> None:
    file.write(json.dumps(asdict(bad), ensure_ascii=False) + "\n")
    audit.malformed += 1
    if len(audit.first_malformed) < _MOST_MALFORMED:
        audit.first_malformed.append(bad)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.5g}")
