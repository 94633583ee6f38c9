"""Readers of a folder that is replaced while they read it: they get one version, and never call a whole one damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.micro import micro_model
from helpers.small_pack import NORM, Q, make_pack
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.files.whole import read_whole
from skillweave.pack import BaseRef, Skillpack
from skillweave.pack.stored import CARD_FILE
from skillweave.weave import Router
from skillweave.weave.card import WeaveCard, pack_card
from skillweave.weave.parts import AddedPack, read_pack, read_router


def test_a_folder_that_never_rests_is_told_and_other_files_do_not_matter(tmp_path: Path) -> None:
    file, other, calls = tmp_path / "a.json", tmp_path / "notes.txt", []
    file.write_text("0")

    def read(target: Path) -> str:
        calls.append(target)
        target.write_text("0" * len(calls))
        return "read"

    assert read_whole(tmp_path, ["*.json"], lambda: read(other)) == "read"
    assert len(calls) == 1
    with pytest.raises(UserError, match="changes while it is read"):
        read_whole(tmp_path, ["*.json"], lambda: read(file))


def test_a_file_that_goes_while_it_is_read_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("0")

    def read() -> str:
        if (tmp_path / "a.json").exists():
            (tmp_path / "a.json").rename(tmp_path / "b.json")
            raise FileNotFoundError("a.json")
        return "read"

    assert read_whole(tmp_path, ["*.json"], read) == "read"


def save_pack(folder: Path, version: int) -> None:
    pack = make_pack()
    pack.tensors[f"{Q}.A_scale"] = pack.tensors[f"{Q}.A_scale"] * version
    pack.card.base.ref = f"base {version}"
    pack.save_pretrained(folder)


def pack_version(pack: Skillpack) -> int:
    scale = pack.tensors[f"{Q}.A_scale"] / make_pack().tensors[f"{Q}.A_scale"]
    assert pack.card.base.ref == f"base {scale.mean().round():.0f}"
    return int(scale.mean().round())


def added_version(found: tuple[AddedPack, Skillpack]) -> int:
    added, pack = found
    version = pack_version(pack)
    card = added.folder.with_name("old" if version == 1 else "new") / CARD_FILE
    assert added.card_hash == sha256_file(card)
    return version


def save_router(folder: Path, version: int) -> None:
    weight = torch.full((2, 4), float(version))
    Router(["one", "base"], weight, torch.zeros(2), torch.zeros(4), torch.ones(4), layer=version).save(folder)


def router_version(router: Router) -> int:
    assert router.layer == router.weight[0, 0]
    return router.layer


def save_delta(folder: Path, version: int) -> None:
    model, tuned = micro_model(), micro_model()
    tuned.get_parameter(NORM).data += version
    delta = Delta.between(model, tuned)
    delta.base_ref = f"base {version}"
    delta.save_pretrained(folder)


def delta_version(delta: Delta) -> int:
    version = round(float(delta.tensor(NORM).mean()))
    assert delta.base_ref == f"base {version}"
    return version


def replace(place: Path, by: Path) -> None:
    """Put a copy of ``by`` at ``place`` in one moment, as another process would."""
    shutil.copytree(by, place.with_name("copy"))
    place.rename(place.with_name("aside"))
    place.with_name("copy").rename(place)
    shutil.rmtree(place.with_name("aside"))


@pytest.mark.parametrize(
    ("save", "read", "version"),
    [
        pytest.param(save_pack, Skillpack.from_pretrained, pack_version, id="pack"),
        pytest.param(save_pack, AddedPack.of, added_version, id="added pack"),
        pytest.param(save_router, Router.load, router_version, id="router"),
        pytest.param(save_delta, Delta.from_pretrained, delta_version, id="delta"),
    ],
)
def test_a_folder_that_is_replaced_at_any_moment_is_read_in_one_version(
    save: Callable[[Path, int], None],
    read: Callable[[Path], Any],
    version: Callable[[Any], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, old, new = tmp_path / "place", tmp_path / "old", tmp_path / "new"
    save(old, 1)
    save(new, 2)
    opened = os.open
    at = count = 0

    def replacing(path: Any, *rest: Any, **options: Any) -> int:
        nonlocal count
        if Path(os.fsdecode(path)).parent == place:
            count += 1
            if count == at:
                replace(place, new)
        return opened(path, *rest, **options)

    found = set()
    while count >= at:
        at, count = at + 1, 0
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(old, place)
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", replacing)
            result = read(place)
        replace(place, old if count >= at else new)  # tensors that are read later are still those of their card
        found.add(version(result))
    assert at > 3
    assert found == {1, 2}


def test_parts_of_another_weave_are_not_taken_for_damaged_ones(tmp_path: Path) -> None:
    """A weave that is built again while a server runs has other packs."""
    weave = tmp_path / "weave"
    base = BaseRef(ref="base 1", fingerprint="sha256:" + "0" * 64)
    card = WeaveCard(base=base, packs=["json-calls"], router=True)
    save_pack(weave / "packs" / "json-calls", 1)
    save_router(weave / "router", 1)
    card.files = {pack_card("json-calls"): "1" * 64, "router/router.json": "1" * 64}
    (weave / "weave.json").write_text(card.model_dump_json())
    for read in (lambda: read_pack(weave, card, "json-calls"), lambda: read_router(weave, card)):
        with pytest.raises(UserError, match="is damaged"):
            read()
        other = card.model_copy(update={"dtype": "float32"})
        (weave / "weave.json").write_text(other.model_dump_json())
        with pytest.raises(UserError, match="was replaced by another weave"):
            read()
        (weave / "weave.json").write_text(card.model_dump_json())
