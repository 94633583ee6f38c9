"""A zip that was killed resumes at the matrix it was on, and gives the bytes of one that was not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.whole_delta import CALIBRATION, whole_delta
from skillweave.base import Base, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.skillzip import ZipConfig, decompositions, lowrank, zip_delta
from skillweave.skillzip.decompositions import DecompositionStore
from skillweave.skillzip.lowrank import Decomposed, decompose

AWARE = {"activation_aware": True, "smoothing": 0.5}
"""Settings for which calibration prompts go through the base."""


@pytest.fixture(scope="module")
def made(micro_base: Path) -> tuple[Base, Delta]:
    base = open_base(micro_base, dtype="float32")
    return base, whole_delta(base, 0.5)


def zipped(made: tuple[Base, Delta], work: Path | None, **settings: Any) -> Skillpack:
    base, delta = made
    return zip_delta(delta, base, CALIBRATION, ZipConfig(budget=30_000, **settings), name="t", work=work)


def count_calls(monkeypatch: pytest.MonkeyPatch, killed_after: int | None = None) -> list[int]:
    """The list that grows with each decomposition; after ``killed_after`` of them the zip is stopped."""
    calls: list[int] = []

    def counted(*args: Any) -> Decomposed:
        if len(calls) == killed_after:
            raise KeyboardInterrupt
        calls.append(1)
        return decompose(*args)

    # The package has a function of this name, too, so the module is named by its path.
    monkeypatch.setattr(sys.modules["skillweave.skillzip.codecs.integer_factors"], "decompose", counted)
    return calls


def same(one: Skillpack, other: Skillpack) -> bool:
    return one.card == other.card and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("settings", [{}, AWARE])
@pytest.mark.parametrize("killed_after", [0, 6])
def test_a_killed_zip_resumes_and_gives_the_same_pack(
    made: tuple[Base, Delta],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    killed_after: int,
) -> None:
    whole = zipped(made, None, **settings)
    matrices = whole.card.codec.measured["matrices"]
    count_calls(monkeypatch, killed_after)
    with pytest.raises(KeyboardInterrupt):
        zipped(made, tmp_path / "work", **settings)
    calls = count_calls(monkeypatch)
    assert same(zipped(made, tmp_path / "work", **settings), whole)
    assert len(calls) == matrices - killed_after
    assert (f"{killed_after} of {matrices} matrices" in capsys.readouterr().err) == (killed_after > 0)
    # Nothing is computed a third time, and calibration prompts are not needed for it.
    monkeypatch.setattr("skillweave.skillzip.source.calibrate", lambda *_: pytest.fail("calibrated again"))
    assert same(zipped(made, tmp_path / "work", **settings), whole)
    assert len(calls) == matrices - killed_after


def test_a_damaged_entry_is_made_again_and_said(
    made: tuple[Base, Delta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = zipped(made, tmp_path / "work", **AWARE)
    files = sorted((tmp_path / "work" / "decompositions").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-5])
    changed = bytearray(files[1].read_bytes())
    changed[-1] ^= 1
    files[1].write_bytes(changed)
    files[2].write_bytes(files[3].read_bytes())  # the entry of another matrix
    capsys.readouterr()
    assert same(zipped(made, tmp_path / "work", **AWARE), whole)
    assert " ".join(capsys.readouterr().err.split()).count("is made again") == 3
    assert same(zipped(made, tmp_path / "work", **AWARE), whole)
    assert "is made again" not in capsys.readouterr().err


def test_work_for_other_settings_is_not_used(
    made: tuple[Base, Delta], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zipped(made, tmp_path / "work", bits=8)
    assert same(zipped(made, tmp_path / "work"), zipped(made, None))
    assert "holds the work of another zip" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("in_folder", [True, False])
def test_what_is_put_is_found(tmp_path: Path, in_folder: bool) -> None:
    folder = tmp_path / "store" if in_folder else None
    store, found = DecompositionStore(folder), decompose(torch.randn(7, 5), 3)
    store.put("a/b#0", found)
    store.put_largest_inputs("a", torch.arange(5.0))
    for again in (store, DecompositionStore(folder)) if in_folder else (store,):
        assert "a/b#0" in again
        assert list(again) == ["a/b#0"]
        assert torch.equal(again["a/b#0"].U, found.U)
        assert torch.equal(again["a/b#0"].gains, found.gains)
        assert again["a/b#0"].energy == found.energy
        largest = again.largest_inputs("a")
        assert largest is not None
        assert largest.tolist() == [0, 1, 2, 3, 4]
        assert again.largest_inputs("b") is None
        with pytest.raises(KeyError):
            again["b"]


def test_a_full_disk_moves_the_store_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "store"
    store, first, second = DecompositionStore(folder), *(decompose(torch.randn(7, 5), 3) for _ in range(2))
    store.put("first", first)
    store.put_largest_inputs("first", torch.ones(2))

    def full(*_: Any) -> None:
        raise UserError("no space left on the disk")

    monkeypatch.setattr(decompositions, "write_tensors", full)
    store.put("second", second)
    assert "a killed zip cannot resume: no space left on the disk" in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
    assert [torch.equal(store[key].U, one.U) for key, one in (("first", first), ("second", second))] == [True, True]
    assert store.largest_inputs("first") is not None


@pytest.mark.parametrize("shape", [(30, 11), (11, 30)])
def test_a_matrix_in_many_blocks_has_the_same_decomposition(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = decompose(matrix, 5)
    monkeypatch.setattr(lowrank, "_BLOCK", 40)
    parts = decompose(matrix, 5)
    assert torch.allclose(parts.gains, whole.gains)
    assert torch.allclose((parts.U.T @ whole.U).abs(), torch.eye(5, dtype=torch.float64), atol=1e-10)
    assert parts.energy == pytest.approx(whole.energy)
