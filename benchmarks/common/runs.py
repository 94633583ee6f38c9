"""Run the plans of a benchmark once each: a stopped benchmark resumes, and several processes may work at once."""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from skillweave import progress
from skillweave.artefact import write_json
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.files.read import read_json
from skillweave.report import versions

P = TypeVar("P")


def run_all(
    plans: Sequence[P], work: Callable[[P], dict[str, Any]], folder: Path, *, jobs: int, fresh: bool = False
) -> list[dict[str, Any]]:
    """The results of ``work`` for each plan (a frozen dataclass), in the order of the plans.

    A result is kept in ``folder`` under a digest of its plan and of the versions of the libraries, and is not made
    again. After a change of our own code the folder must be deleted. ``jobs`` processes work at once. With 1 the work
    is done in this process, unless ``fresh``: then every run has a process of its own and so its own peak of memory.
    Each result also has ``peak_bytes``, the peak resident memory of its process.
    """
    todo = [plan for plan in plans if not _place(plan, folder).exists()]
    with progress.bar("runs", len(plans)) as advance:
        advance(len(plans) - len(todo))
        if jobs == 1 and not fresh:
            for plan in todo:
                _one(plan, work, folder)
                advance(1)
        elif todo:
            context = multiprocessing.get_context("spawn")
            each = 1 if fresh else None
            with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=each) as pool:
                for done in as_completed([pool.submit(_one, plan, work, folder) for plan in todo]):
                    done.result()
                    advance(1)
    return [read_json(_place(plan, folder))["result"] for plan in plans]


def as_far_as_measured(
    plans: Sequence[P], work: Callable[[P], dict[str, Any]], folder: Path, *, jobs: int = 1, show: bool = False
) -> list[dict[str, Any]]:
    """The results of the plans that are done in ``folder``, after :func:`run_all` unless ``show``; and what is not.

    Ctrl-C ends the runs. Raises :class:`UserError` if no plan is done.
    """
    if not show:
        try:
            run_all(plans, work, folder, jobs=jobs)
        except KeyboardInterrupt:
            progress.console.print("Stopped.")
    found = [read_json(place)["result"] for plan in plans if (place := _place(plan, folder)).exists()]
    if not found:
        raise UserError(f"nothing was measured yet in {folder}: run the benchmark without --show")
    if missing := len(plans) - len(found):
        progress.console.print(f"{progress.share_of(missing, len(plans), 'cells')} are not measured yet")
    return found


def in_own_process(module: str, *arguments: str, what: str) -> dict[str, Any]:
    """The JSON object that ``python -m MODULE ARGUMENTS`` prints as its last line.

    Raises :class:`UserError` with what it wrote to standard error if it fails; ``what`` says what it does.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise UserError(f"the process that {what} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _one(plan: Any, work: Callable[[Any], dict[str, Any]], folder: Path) -> None:
    quiet, progress.console.quiet = progress.console.quiet, True
    try:
        result = work(plan)
    finally:
        progress.console.quiet = quiet
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_json(_place(plan, folder), {"plan": asdict(plan), "result": {**result, "peak_bytes": peak}})


def _place(plan: Any, folder: Path) -> Path:
    return folder / f"{digest([asdict(plan), versions()])}.json"
