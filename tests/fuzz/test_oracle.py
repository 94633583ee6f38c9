"""The oracle can fail: it finds each fault that is planted in the readers, and names its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.fuzz.artefacts import artefact_kinds
from helpers.fuzz.oracle import Kind, fuzz
from skillweave.errors import UserError
from skillweave.files import folder as artefact_folder
from skillweave.pack import skillpack

SEEDS = range(100)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Kind:
    """The kind of a pack without entropy coding, whose own sums would find most of the faults that are planted here."""
    return next(kind for kind in artefact_kinds(tmp_path_factory.mktemp("good")) if kind.name == "uncoded pack")


def test_without_a_fault_none_is_found(pack: Kind, tmp_path: Path) -> None:
    assert not fuzz(pack, SEEDS, tmp_path / "work").faults


def test_a_hash_that_is_not_checked(pack: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact_folder.Folder, "matches", lambda self, name, expected: self.file(name))
    faults = fuzz(pack, range(400), tmp_path / "work").faults
    assert any("silent difference" in fault and "a hash protects it" in fault for fault in faults)


def test_numbers_that_are_not_checked(pack: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skillpack, "check_values", lambda *_: None)
    faults = fuzz(pack, SEEDS, tmp_path / "work").faults
    assert any("silent difference" in fault and "numbers that are not finite" in fault for fault in faults)


def _changed(found: dict[str, Any]) -> dict[str, Any]:
    """A reader that ignores the value of one field."""
    return {**found, "card": {**found["card"], "method": "another"}}


@pytest.mark.parametrize(
    ("wrong", "outcome"),
    [
        (lambda read, path: _changed(read(path)), "silent difference"),
        (lambda read, path: _raised(read, path, KeyError("weight")), "traceback"),
        (lambda read, path: _raised(read, path, UserError("something is wrong")), "nameless"),
    ],
)
def test_a_reader_that_is_wrong(pack: Kind, tmp_path: Path, wrong: Callable[..., Any], outcome: str) -> None:
    good = pack.read
    first = good(pack.good)

    def read(path: Path) -> Any:
        return first if path == pack.good else wrong(good, path)

    tally = fuzz(replace(pack, read=read), SEEDS, tmp_path / "work")
    assert tally.outcomes[outcome]
    assert any(f": {outcome}: " in fault for fault in tally.faults)


def _raised(read: Callable[[Path], Any], path: Path, error: Exception) -> Any:
    try:
        return read(path)
    except UserError:
        raise error from None
