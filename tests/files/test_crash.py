"""Every save, killed or failing at every system call: the old or the new version stays, and nothing else is left.

``python -m benchmarks.crash`` tries all errors at all calls; here each call, of artefacts every third one, is killed
once and fails once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.crash.faults import ERRORS, Save, Trial
from benchmarks.crash.saves import artefact_saves, file_saves

from skillweave.micro import MicroShape
from skillweave.progress import console

FILES = {save.name: save for save in file_saves()}
ARTEFACTS = ["delta, replacing", "pack, replacing", "weave, replacing", "build step"]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Save]:
    saves = artefact_saves(tmp_path_factory.mktemp("made"), MicroShape(hidden=32, intermediate=64, layers=1))
    return {save.name: save for save in saves}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if possible: thousands of syncs to a real disk take minutes and prove nothing more."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    console.quiet = True
    yield
    console.quiet = False


def _each_call(save: Save, scratch: Path, every: int = 1) -> None:
    trial = Trial(save, scratch)
    tried = range(1, len(trial.calls()) + 1, every)
    for at in tried:
        trial.kill(at)
        trial.fail(at, ERRORS[at % len(ERRORS)], onwards=at % 2 == 0)
    assert trial.outcome.wrong == []
    assert trial.outcome.points == 2 * len(tried)
    assert trial.outcome.replaced > 0
    if save.old is not None:
        assert trial.outcome.kept > 0
        assert save.without_exchange or save.may_be_absent or trial.outcome.empty == 0


@pytest.mark.parametrize("name", FILES)
def test_a_file_or_folder_is_the_old_one_or_the_new_one_whatever_call_fails(name: str, scratch: Path) -> None:
    _each_call(FILES[name], scratch)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_an_artefact_is_the_old_one_or_the_new_one_whatever_call_fails(
    name: str, artefacts: dict[str, Save], scratch: Path
) -> None:
    _each_call(artefacts[name], scratch, every=3)
