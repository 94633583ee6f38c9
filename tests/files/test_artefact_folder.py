"""The reader of an artefact's folder: names, links, kinds of files, hashes, copies."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from skillweave.errors import UserError
from skillweave.files.folder import Folder, check_plain_name, named_shortly
from skillweave.files.hashes import sha256_file
from skillweave.files.values import LARGEST, check_free
from skillweave.terminal import one_line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    (folder / "files").mkdir(parents=True)
    (folder / "card.json").write_text("{}")
    (folder / "data").write_text("data")
    (folder / "files" / "a.json").write_text("[]")
    return folder


def reader(folder: Path) -> Folder:
    return Folder(folder, "card.json", "Again.")


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/etc/passwd", "../data", "files/../data", "files//a.json", "./data", "files/", "a\\b", "a\0b",
        "a\nb", "a b", "\x1b[2J", ".hidden", "-rf", "C:\\x", "~/x", "x" * 200, "a/" * 5 + "b", "a..b", "ä", "a:b", "*",
    ],
)  # fmt: skip
def test_names_that_are_paths_or_worse(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        check_plain_name(name)
    with pytest.raises(UserError, match=r"artefact: .*is not a plain file name.*Again\."):
        reader(folder).file(name)


@pytest.mark.parametrize("name", ["data", "files/a.json", "delta-00001-of-00002.safetensors", "a_b.c-d+e", "_x", "1"])
def test_plain_names(name: str) -> None:
    assert check_plain_name(name) == name


def test_what_is_no_regular_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("data")
    (folder / "absolute").symlink_to(tmp_path / "private")
    (folder / "relative").symlink_to("../private")
    (folder / "inside").symlink_to("data")
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    for name, message in {
        "absolute": "is a link", "relative": "is a link", "inside": "is a link", "broken": "is a link",
        "loop": "is a link", "folder": "is a folder", "pipe": "is a pipe", "socket": "is a pipe, a device or a socket",
        "gone": "is missing: the folder is incomplete", "data/x": "is not a folder of its own",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=rf"{name.split('/')[0]} {message}"):
            reader(folder).file(name)
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match="linked is not a folder of its own"):
        reader(folder).file("linked/private")


def test_a_link_to_the_folder_itself_is_the_persons_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(folder, target_is_directory=True)
    assert reader(tmp_path / "here").file("files/a.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("place", "target", "allowed"),
    [
        ("models--a--b/snapshots/1", "models--a--b/blobs", True),
        ("datasets--a--b/snapshots/1/packs/x", "datasets--a--b/blobs", True),
        ("models--a--b/snapshots/1", "models--c--d/blobs", False),
        ("models--a--b/snapshots/1", "models--a--b/blobs/deeper", False),
        ("models--a--b/snapshots/1", "models--a--b/snapshots/1", False),
        ("mine/snapshots/1", "mine/blobs", False),
        ("models--a--b/other/1", "models--a--b/blobs", False),
    ],
)
def test_links_of_the_hubs_cache(tmp_path: Path, place: str, target: str, allowed: bool) -> None:
    snapshot, blobs = tmp_path / place, tmp_path / target
    snapshot.mkdir(parents=True)
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / "hash").write_text("data")
    (snapshot / "data").symlink_to(os.path.relpath(blobs / "hash", snapshot))
    if allowed:
        assert reader(snapshot).file("data").read_text() == "data"
        (blobs / "hash").unlink()
    with pytest.raises(UserError, match="data is a link"):
        reader(snapshot).file("data")


def test_a_stranger_cannot_lay_the_hubs_blobs_elsewhere(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    (tmp_path / "models--a--b" / "blobs").symlink_to(tmp_path / "private")
    (snapshot / "data").symlink_to("../../blobs/key")
    with pytest.raises(UserError, match="data is a link"):
        reader(snapshot).file("data")


def test_every_hash_is_checked(folder: Path) -> None:
    right = {name: sha256_file(folder / name) for name in ("data", "files/a.json")}
    assert list(reader(folder).verified(right)) == list(right)
    (folder / "files" / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a\.json is damaged: its SHA-256 is .*card\.json names .*Again\."):
        reader(folder).verified(right)
    with pytest.raises(UserError, match=r"card\.json names none\. Again\."):
        reader(folder).matches("data", None)


def test_a_copy_holds_what_is_named_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    (folder / "notes").symlink_to(tmp_path / "private")
    (folder / "files" / "more").write_text("more")
    (folder / "other").mkdir()
    (folder / "other" / "x").write_text("x")
    named = {name: sha256_file(folder / name) for name in ("data", "files/a.json")}
    assert reader(folder).unnamed(named) == ["files/more", "notes", "other"]
    reader(folder).copy(named, tmp_path / "copy")
    found = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*"))
    assert found == ["card.json", "data", "files", "files/a.json"]
    with pytest.raises(UserError, match="damaged"):
        reader(folder).copy({"data": "0" * 64}, tmp_path / "bad")


def test_names_are_shown_as_text() -> None:
    assert named_shortly(["a", "\x1b[2J"]) == "'a', '\\x1b[2J'"
    assert named_shortly(list("abcde")) == "'a', 'b', 'c' and 2 more"


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": float("nan")}, "a finite number is expected, not nan"),
        ({"x": [{"y": float("-inf")}]}, "a finite number is expected, not -inf"),
        ({"x": 2**64}, r"2\*\*64"),
        ({"x": nested(33)}, "more than 32 deep"),
        ({"x": nested(100_000)}, "more than 32 deep"),
        ({"x": "y" * LARGEST}, "more than 1,048,576"),
        ({"y" * LARGEST: 1}, "more than 1,048,576"),
        ({"x": [0] * LARGEST}, "more than 1,048,576"),
        ({"x": object()}, "not JSON"),
        ({1: "x"}, "a key is not a text"),
    ],
)
def test_free_values_are_bounded(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_free(value)


def test_free_values_that_are_kept() -> None:
    value = {"a": [1, 2.5, None, True, {"b": "c" * 1000}], "d": nested(30), "e": -(2**63)}
    assert check_free(value) is value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\x1b[31m\nb", "a\\x1b[31m b"),
        ([1, "\x07"], "[1, '\\x07']"),
        (None, "None"),
        ("x" * 30, "xxxxx... (30 characters, cut)"),
    ],
)
def test_one_line(value: object, shown: str) -> None:
    assert one_line(value, 5 if shown.endswith("cut)") else 200) == shown
