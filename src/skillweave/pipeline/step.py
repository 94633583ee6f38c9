"""A build step: done once for given inputs, resumed after a kill, done anew when an input changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from skillweave.artefact import disk_errors, sweep, write_json
from skillweave.files.disk import make_folders
from skillweave.files.hashes import digest
from skillweave.files.read import read_json
from skillweave.files.recover import drop
from skillweave.progress import console

MARKER = "step.json"


def step_seconds(folder: Path) -> float:
    """What a finished step took, the part before a kill not counted; 0 where the folder is no step's."""
    marker = folder / MARKER
    return read_json(marker)["seconds"] if marker.exists() else 0.0


def run_step(title: str, folder: Path, inputs: Mapping[str, Any], work: Callable[[Path], object]) -> str:
    """Run ``work(folder)`` unless it finished for equal ``inputs`` before; return the key of those inputs.

    A step that was begun for equal inputs and not finished is entered again with its folder as the kill left it,
    so that ``work`` goes on from what it saved. Other inputs empty the folder first. The key names the step's
    result: hand it to the steps that build on it as one of their inputs.
    """
    key = digest(inputs)
    marker = folder / MARKER
    with disk_errors(folder):
        sweep(folder)
        state = read_json(marker) if marker.exists() else {}
    if state.get("key") == key and state.get("done"):
        console.print(f"- {title}: done before, unchanged", style="dim")
        return key
    if state.get("key") == key:
        console.print(Text.assemble((title, "bold"), " (goes on from where it stopped)"))
    else:
        console.print(title, style="bold")
        # As one: a kill must not leave the mark of a finished step beside files that are gone.
        with disk_errors(folder):
            drop(folder)
            make_folders(folder)
        write_json(marker, {"key": key, "done": False, "inputs": inputs})
    began = time.monotonic()
    work(folder)
    write_json(marker, {"key": key, "done": True, "seconds": round(time.monotonic() - began, 1), "inputs": inputs})
    return key
