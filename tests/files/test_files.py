"""Atomic writes: the old artefact or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from skillweave.artefact import atomic_file, atomic_folder, disk_errors, write_json
from skillweave.base.safetensors_io import write_tensors
from skillweave.errors import UserError
from skillweave.files.disk import temporary_folder
from skillweave.files.hashes import digest, sha256_file, shortened
from skillweave.files.read import read_card_file, read_json


def test_json_round_trip_and_hash(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", {"b": 1, "a": [1.5, "é"]})
    assert read_json(tmp_path / "a" / "x.json") == {"b": 1, "a": [1.5, "é"]}
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digest_ignores_the_order_of_keys_only() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})


def test_two_fingerprints_are_cut_behind_their_first_difference() -> None:
    one = "sha256:" + "0123456789abcdef" * 4
    assert shortened(one, "sha256:f" + one[8:]) == ("sha256:0123456789ab...", "sha256:f123456789ab...")
    assert shortened(one, f"{one[:40]}x{one[41:]}") == (f"{one[:41]}...", f"{one[:40]}x...")
    assert shortened(one, f"{one}0") == (one, f"{one}0")
    assert shortened("a", "b") == ("a", "b")


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_a_failed_write_leaves_the_old_and_no_litter(tmp_path: Path, write) -> None:
    target = tmp_path / "thing"
    with write(target) as temporary:
        (temporary / "part" if temporary.is_dir() else temporary).write_text("old")
    with pytest.raises(RuntimeError), write(target) as temporary:
        (temporary / "part" if temporary.is_dir() else temporary).write_text("new")
        raise RuntimeError
    assert (target / "part" if target.is_dir() else target).read_text() == "old"
    assert os.listdir(tmp_path) == ["thing"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "f") as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(tmp_path / "f") == ["second"]


def test_tensors_need_not_be_contiguous(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    write_tensors(tmp_path / "t.safetensors", {"t": tensor}, {})
    assert torch.equal(load_file(tmp_path / "t.safetensors")["t"], tensor)


def test_damaged_json_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{\n "a": 1,\n "b" 2\n}')
    with pytest.raises(UserError, match=r"x\.json, line 3"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "y.json")


def test_a_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("precious")
    with pytest.raises(UserError, match="is a file"), atomic_folder(tmp_path / "f"):
        pass
    assert (tmp_path / "f").read_text() == "precious"


def test_a_newer_schema_and_a_field_that_does_not_fit_are_told(tmp_path: Path) -> None:
    class Card(BaseModel):
        schema_version: int
        name: str

    write_json(tmp_path / "c.json", {"schema_version": 1, "name": "x"})
    assert read_card_file(tmp_path / "c.json", Card, 1, "Again.").name == "x"
    write_json(tmp_path / "c.json", {"schema_version": 2, "name": "x"})
    with pytest.raises(UserError, match="schema version 2; this skillweave reads up to 1"):
        read_card_file(tmp_path / "c.json", Card, 1, "Again.")
    write_json(tmp_path / "c.json", {"schema_version": 1, "name": 3})
    with pytest.raises(UserError, match=r"c\.json: name: .*string \(found 3\)\. Again\."):
        read_card_file(tmp_path / "c.json", Card, 1, "Again.")


@pytest.fixture
def small_disk(disk_of: Callable[[str], Path]) -> Path:
    """A file system of one megabyte."""
    return disk_of("1m")


def test_a_full_disk_for_temporary_files_is_told(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with temporary_folder(lambda folder: (folder / "x").write_bytes(b"x")) as folder:
        assert (folder / "x").read_bytes() == b"x"
    # NumPy's error has no number, and does not speak of the disk.
    told = f"no space left on the disk while writing {small_disk}; .* or set TMPDIR to a folder on another disk"
    for fill in (
        lambda folder: np.save(folder / "x.npy", np.zeros(2**18)),
        lambda folder: (folder / "x").write_bytes(b"x" * 2**21),
    ):
        with pytest.raises(UserError, match=told), temporary_folder(fill):
            pass
    assert os.listdir(small_disk) == []
    monkeypatch.setattr(tempfile, "gettempdir", mock.Mock(side_effect=FileNotFoundError("none in ['/tmp']")))
    with pytest.raises(UserError, match="set TMPDIR to one that can"), temporary_folder(lambda folder: None):
        pass


def test_a_full_disk_keeps_the_old_and_says_so(small_disk: Path) -> None:
    write_tensors(small_disk / "t.safetensors", {"t": torch.zeros(10)}, {})
    with pytest.raises(UserError, match="no space left"):
        write_tensors(small_disk / "t.safetensors", {"t": torch.zeros(2**20)}, {})
    assert torch.equal(load_file(small_disk / "t.safetensors")["t"], torch.zeros(10))
    with pytest.raises(UserError, match="no space left"), atomic_folder(small_disk / "f") as temporary:
        (temporary / "big").write_bytes(b"\0" * 2**21)
    with (
        pytest.raises(UserError, match=r"writing .*/disk/f/t\.safetensors;"),
        atomic_folder(small_disk / "f") as temporary,
    ):
        write_tensors(temporary / "t.safetensors", {"t": torch.zeros(2**20)}, {})
    (small_disk / "filler").write_bytes(b"\0" * 2**19)
    with pytest.raises(UserError, match="no space left"), disk_errors(small_disk):
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch.save says there
    (small_disk / "filler").unlink()
    assert os.listdir(small_disk) == ["t.safetensors"]
