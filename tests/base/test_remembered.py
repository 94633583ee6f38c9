"""A remembered fingerprint does not outlive the files that it was taken of."""

from __future__ import annotations

import importlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.micro import save_micro
from skillweave.base import fingerprint, remembered

# The package exports the function under the name of its module.
module = importlib.import_module("skillweave.base.fingerprint")


@pytest.fixture
def folder(tmp_path: Path, micro_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the micro base whose fingerprint is remembered at once, on any file system."""
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_SLOW", -1)
    monkeypatch.setattr(remembered, "_SETTLED", -1)
    monkeypatch.setattr(remembered, "_records_every_change", lambda state: True)
    return Path(shutil.copytree(micro_base, tmp_path / "copy"))


def notes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "fingerprints").glob("*.json"))


def recalled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the fingerprint comes from the memory."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "hash_tensors", lambda checkpoint: "hashed again")
        return fingerprint(folder) != "hashed again"


def test_a_slow_one_of_settled_files_is_remembered(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_SLOW", 0.3)
    first = fingerprint(folder)
    assert not notes(tmp_path), "a fast one needs no note"
    monkeypatch.setattr(module, "_SLOW", -1)
    monkeypatch.setattr(remembered, "_SETTLED", 2.0)
    (folder / "config.json").touch()
    fingerprint(folder)
    assert not notes(tmp_path), "files this young may still change unseen"
    monkeypatch.setattr(remembered, "_SETTLED", -1)
    monkeypatch.setattr(remembered, "_records_every_change", lambda state: False)
    fingerprint(folder)
    assert not notes(tmp_path), "on such a file system files may change unseen"
    monkeypatch.setattr(remembered, "_records_every_change", lambda state: True)
    assert fingerprint(folder) == first
    assert len(notes(tmp_path)) == 1
    assert recalled(folder, monkeypatch)


def replaced(folder: Path, tmp_path: Path) -> None:
    """Another model of equal size and times at the same place."""
    other = save_micro(tmp_path / "other", seed=8)
    for file in folder.iterdir():
        about = file.stat()
        if (other / file.name).is_file():
            shutil.copy(other / file.name, file)
            os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def renamed(folder: Path, tmp_path: Path) -> None:
    about = (folder / "model.safetensors").stat()
    other = save_micro(tmp_path / "other", seed=8) / "model.safetensors"
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.replace(other, folder / "model.safetensors")


def written_through_a_mapping(folder: Path, tmp_path: Path) -> None:
    with open(folder / "model.safetensors", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[-1] ^= 64


def one_more_tensor(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "more": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})


def another_config(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")


@pytest.mark.parametrize("change", [replaced, renamed, written_through_a_mapping, one_more_tensor, another_config])
def test_it_is_forgotten_when_a_file_changes(folder: Path, tmp_path: Path, monkeypatch, change) -> None:
    fingerprint(folder)
    assert recalled(folder, monkeypatch)
    change(folder, tmp_path)
    assert not recalled(folder, monkeypatch)
    assert len(notes(tmp_path)) == 1, "a folder has one note"


@pytest.mark.parametrize("stamps", [slice(2, 6), slice(2, 4)])
def test_pieces_of_the_data_tell_where_the_numbers_of_the_file_system_do_not(
    folder: Path, tmp_path: Path, monkeypatch, stamps: slice
) -> None:
    honest = remembered.file_state

    def blank(file: Path) -> list:
        row = honest(file)
        row[stamps] = [0] * len(row[stamps])
        return row

    monkeypatch.setattr(remembered, "file_state", blank)
    fingerprint(folder)
    assert recalled(folder, monkeypatch)
    replaced(folder, tmp_path)
    assert not recalled(folder, monkeypatch)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7])
def test_a_second_write_through_one_mapping_is_seen(folder: Path, monkeypatch, fraction: float) -> None:
    path = folder / "model.safetensors"
    if remembered._EXACT_FILE_SYSTEMS.isdisjoint({_kind_of(path)}):
        pytest.skip("this file system does not note writes through a mapping")
    monkeypatch.setattr(remembered, "_PIECES", 2)  # so that the pieces tell nothing of the middle
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        place = 20_000 + int(fraction * (len(view) - 40_000))
        view[place] ^= 64
        fingerprint(folder)
        assert recalled(folder, monkeypatch)
        view[place] ^= 64
        assert not recalled(folder, monkeypatch)


def _kind_of(path: Path) -> str | None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines() if Path("/proc/self/mountinfo").exists() else []
    mounts = [line.split(" - ") for line in lines]
    kinds = {left.split()[2]: right.split()[0] for left, right in mounts}
    device = path.stat().st_dev
    return kinds.get(f"{os.major(device)}:{os.minor(device)}")


@pytest.mark.parametrize(
    "damage",
    [
        lambda note: "{",
        lambda note: "[]",
        lambda note: json.dumps({**note, "fingerprint": "sha256:" + 64 * "0"}),
        lambda note: json.dumps({**note, "fingerprint": 3}),
        lambda note: json.dumps({"fingerprint": note["fingerprint"], "files": note["files"]}),
        lambda note: json.dumps({**note, "files": [*note["files"], []]}),
    ],
)
def test_a_damaged_note_is_ignored_and_written_again(folder: Path, tmp_path: Path, monkeypatch, damage) -> None:
    mark = fingerprint(folder)
    (path,) = notes(tmp_path)
    path.write_text(damage(json.loads(path.read_text())))
    assert fingerprint(folder) == mark
    assert recalled(folder, monkeypatch)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory")
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield place
    shutil.rmtree(place)


def test_nothing_is_remembered_of_a_file_system_in_memory(in_memory: Path, micro_base: Path) -> None:
    shutil.copytree(micro_base, in_memory / "base")
    state = [[2, "x"], remembered.file_state(in_memory / "base" / "model.safetensors")]
    assert not remembered._records_every_change(state)
