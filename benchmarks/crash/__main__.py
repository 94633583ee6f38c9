"""Check that nothing is lost when a save is interrupted: every kind of save is killed, and fails, at every call.

A save is run again for each of its system calls (open, write, sync, rename, exchange, remove, lock ...). First it is
killed just before the call. Then the call fails, once with each error of a disk that is full, broken, read-only or
remote. Then the call and all later calls fail. After each run a reader must find the whole old version or the whole new
one, the next save must succeed and leave no hidden files, and a failure must end in one sentence. A training run is
killed at each call and resumes; its weights must be those of a run without an interruption.

    python -m benchmarks.crash            twenty minutes on two cores
    python -m benchmarks.crash --quick    every tenth call, on files and folders
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, run
from benchmarks.crash.faults import ERRORS, Outcome, Trial
from benchmarks.crash.saves import artefact_saves, file_saves, training_save
from skillweave.micro import MicroShape
from skillweave.progress import console
from skillweave.report import Table

NAME = "crash"
MEMORY = Path("/dev/shm")
"""The saves go to a disk in memory if there is one: the calls are the same, and syncs take no time."""
_FAR = ("ENOSPC", "EIO", "EROFS")
"""Errors that persist once they occur."""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    options = arguments(__doc__, ["micro"]).parse_args(argv)
    record = Record.begin(NAME, options, argv, [0])
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    outcomes = []
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as scratch:
        saves = file_saves()
        if not options.quick:
            saves += [*artefact_saves(Path(scratch), MicroShape()), training_save(Path(scratch), 3)]
        for number, save in enumerate(saves):
            folder = Path(scratch) / f"trial-{number}"
            folder.mkdir()
            console.print(f"  {save.name}")
            console.quiet = True  # each recovery prints a line, and there are thousands
            try:
                outcomes.append(_tried(Trial(save, folder), every=10 if options.quick else 1))
            finally:
                console.quiet = False
    record.rows = [asdict(outcome) for outcome in outcomes]
    points, wrong = sum(one.points for one in outcomes), [text for one in outcomes for text in one.wrong]
    for text in wrong[:20]:
        console.print(text, markup=False)
    lost = len(wrong)
    no_moment = sum(one.empty for one in outcomes if _exchanges(one.name))
    record.claims = [
        Claim("saves cut off", points, points, points, ">= 1", points >= 1),
        Claim(
            "of these: something lost, mixed, left behind or told by a traceback", lost, lost, lost, "<= 0", not lost
        ),
        Claim("moments without a version where folders can be exchanged", *[no_moment] * 3, "<= 0", not no_moment),
    ]
    cells = [[*map(str, _cells(one))] for one in outcomes]
    header = ["save", "points", "old found", "new found", "place empty before recovery", "wrong"]
    record.finish(Table(header, cells), _figure(outcomes))


def _tried(trial: Trial, every: int) -> Outcome:
    calls = range(1, len(trial.calls()) + 1, every)
    for at in calls:
        trial.kill(at)
    if trial.save.name.startswith("training"):  # the trainer reports the errors of torch's own writing
        return trial.outcome
    for at in calls:
        for error in ERRORS:
            trial.fail(at, error, onwards=False)
        for error in _FAR:
            trial.fail(at, error, onwards=True)
    for at in range(1, len(trial.calls(looks=True)) + 1, every):
        for error in ("EIO", "EACCES"):
            trial.fail(at, error, onwards=False, looks=True)
    return trial.outcome


def _exchanges(name: str) -> bool:
    return "no exchange" not in name and not name.startswith("build step")


def _cells(one: Outcome) -> tuple[Any, ...]:
    return one.name, one.points, one.kept, one.replaced, one.empty, len(one.wrong)


def _figure(outcomes: Sequence[Outcome]) -> Figure:
    figure = Figure(figsize=(7, 0.3 * len(outcomes) + 1))
    axes = figure.add_subplot()
    names = [one.name for one in outcomes]
    kept = [one.kept for one in outcomes]
    axes.barh(names, kept, color="#90a4ae", label="the old version, or none yet")
    axes.barh(names, [one.replaced for one in outcomes], left=kept, color="#00796b", label="the new version")
    axes.set_xlabel("saves cut off, by what a reader found")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    run(main)
