"""Packs are found in folders and on the hub, of which only the files of a pack are downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.fake_hub import fake_hub, turn_hub_to
from helpers.weave_packs import random_pack
from skillweave.base import open_base
from skillweave.errors import UserError
from skillweave.pack.find import pack_folder
from skillweave.weave import Weave


def test_a_pack_of_the_hub_is_downloaded_alone_and_loads(micro_base: Path, tmp_path: Path, monkeypatch) -> None:
    base = open_base(micro_base)
    random_pack(base.model, base.fingerprint).save_pretrained(tmp_path / "repository")
    for other in ("model.safetensors", "code.py"):
        (tmp_path / "repository" / other).write_bytes(b"x" * 100)
    weave = Weave.of(base, unpacked_packs=None)
    with fake_hub("owner/name", tmp_path / "repository") as (address, asked):
        turn_hub_to(address, tmp_path / "cache", monkeypatch)
        assert weave.shelf.add("owner/name") == "skill"
    assert set(asked) == {"skillpack.json", "skillpack.safetensors"}
    for _ in range(2):  # the hub is gone; the second load reads the copy
        weave.put(weave.shelf.read("skill", keep=True))
        weave.unload("skill")
    card = pack_folder("owner/name") / "skillpack.json"
    assert card.is_symlink()
    outside = tmp_path / "outside.json"
    outside.write_bytes(card.read_bytes())
    card.unlink()
    card.symlink_to(outside)
    with pytest.raises(UserError, match="is a link"):
        weave.load("skill")


def test_what_is_no_pack_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").write_text("x")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "other.txt").write_text("x")
    with pytest.raises(UserError, match="some/file is a file: name the folder of a saved pack, or a hub id"):
        pack_folder("some/file")
    with pytest.raises(UserError, match="/no/where does not exist: name"):
        pack_folder("/no/where")
    assert pack_folder("some") == Path("some")
    with fake_hub("owner/name", tmp_path / "repository") as (address, _):
        turn_hub_to(address, tmp_path / "cache", monkeypatch)
        with pytest.raises(UserError, match=r"'owner/name' has no skillpack\.json"):
            pack_folder("owner/name")
        with pytest.raises(UserError, match="the hub has no repository 'owner/other'"):
            pack_folder("owner/other")
