"""Weaves that a stranger wrote: names, parts, links and numbers are checked, and a copy holds only what is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.weave_packs import random_pack
from skillweave.base import Base, Sampling, open_base
from skillweave.cli.contents import show_weave
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.pack import Skillpack
from skillweave.weave import Weave, read_card
from skillweave.weave.router import Router, features, fit_on_features

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def base(micro_base) -> Base:
    return open_base(micro_base)


@pytest.fixture(scope="module")
def router(base) -> Router:
    x = features(base, ["1+1=", "2+3=", "12+5=", "hello", "who are you", "tell me"], 1)
    return fit_on_features(x, torch.tensor([0, 0, 0, 1, 1, 1]), ["sums", "base"], layer=1)


@pytest.fixture(scope="module")
def pack_folder(base, tmp_path_factory) -> Path:
    pack = random_pack(base.model, base.fingerprint, name="sums", difference=[NORM])
    return pack.save_pretrained(tmp_path_factory.mktemp("pack") / "sums")


@pytest.fixture(scope="module")
def woven(base, router, pack_folder, tmp_path_factory) -> Path:
    other = random_pack(base.model, base.fingerprint, name="other", seed=1)
    return Weave.write(tmp_path_factory.mktemp("weave") / "w", base, {"sums": pack_folder, "other": other}, router)


@pytest.fixture
def folder(woven, tmp_path) -> Path:
    return shutil.copytree(woven, tmp_path / "w")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def name_parts(weave: Path) -> None:
    """Write the hashes of all parts into the card, as its author can."""

    def change(card: dict[str, Any]) -> None:
        card["files"] = {part: sha256_file(weave / part) for part in card["files"]}

    edit(weave / "weave.json", change)


def test_the_card_names_the_card_of_every_part(woven: Path) -> None:
    card = read_card(woven)
    assert sorted(card.files) == ["packs/other/skillpack.json", "packs/sums/skillpack.json", "router/router.json"]
    assert all(sha256_file(woven / part) == sha for part, sha in card.files.items())


CARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no version": (lambda c: c.pop("schema_version"), "schema_version is missing"),
    "a path": (lambda c: c.update(packs=["../../outside"]), r"packs\.0: .*cannot name a pack"),
    "an absolute path": (lambda c: c.update(packs=["/etc"]), r"packs\.0: .*cannot name a pack"),
    "a nul": (lambda c: c.update(packs=["a\0"]), r"packs\.0: .*cannot name a pack"),
    "a line feed": (lambda c: c.update(packs=["sums\n"]), r"packs\.0: .*cannot name a pack"),
    "the base": (lambda c: c.update(packs=["base"]), "stands for the plain base"),
    "the router's": (lambda c: c.update(packs=["AUTO"]), "stands for the router's choice"),
    "a name twice": (lambda c: c.update(packs=["sums", "sums"]), "would be one folder"),
    "names that differ in case": (lambda c: c.update(packs=["sums", "SUMS"]), "would be one folder"),
    "a pack nobody hashed": (lambda c: c.update(packs=["sums", "other", "c"]), r"files: 'packs/c/skillpack\.json'"),
    "a hash of no part": (lambda c: c["files"].update({"report.json": "0" * 64}), r"files: 'report\.json'"),
    "a hash of a file above": (lambda c: c["files"].update({"../x": "0" * 64}), "is not a plain file name"),
    "a part without its hash": (lambda c: c["files"].pop("router/router.json"), r"files: 'router/router\.json'"),
    "a router of 1": (lambda c: c.update(router=1), "router: .*valid boolean"),
    "a budget of nothing": (lambda c: c.update(budget=0), "budget"),
    "a budget below nothing": (lambda c: c.update(budget=-1), "budget"),
    "a budget of true": (lambda c: c.update(budget=True), "budget"),
    "a budget of text": (lambda c: c.update(budget="1GB"), "budget"),
    "a dtype that is none": (lambda c: c.update(dtype="int4"), "dtype"),
    "another key": (lambda c: c.update(code="x"), "code: Extra"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CARDS.values(), ids=CARDS.keys())
def test_cards_are_refused_by_key(folder: Path, base: Base, change, message: str) -> None:
    edit(folder / "weave.json", change)
    with pytest.raises(UserError, match=rf"(?s)weave\.json.*{message}"):
        Weave.from_pretrained(folder, base=base)


@pytest.mark.parametrize("part", ["packs/sums/skillpack.json", "router/router.json"])
def test_another_part_in_its_place(folder: Path, base: Base, part: str) -> None:
    (folder / part).write_text((folder / part).read_text() + "\n")
    with pytest.raises(UserError, match=rf"{part} is damaged: .*weave\.json names"):
        Weave.from_pretrained(folder, base=base)
    name_parts(folder)
    assert Weave.from_pretrained(folder, base=base).loaded == ["sums", "other"]


@pytest.mark.parametrize("version", [1, 2])
def test_parts_that_do_not_fit_whatever_the_hashes_say(folder: Path, base: Base, version: int) -> None:
    def rewrite(path: str, change: Callable[[dict[str, Any]], object]) -> None:
        edit(folder / path, change)
        name_parts(folder)
        if version == 1:
            edit(folder / "weave.json", lambda card: card.update(schema_version=1))

    name = "packs/sums/skillpack.json"
    rewrite(name, lambda card: card.update(name="other"))
    with pytest.raises(UserError, match="the pack in the folder 'sums' is called 'other'"):
        Weave.from_pretrained(folder, base=base)
    rewrite(name, lambda card: card.update(name="sums"))
    rewrite("router/router.json", lambda card: card.update(classes=["ghost", "base"]))
    with pytest.raises(UserError, match="sends prompts to 'ghost', which is not among the packs"):
        Weave.from_pretrained(folder, base=base)
    rewrite("router/router.json", lambda card: card.update(classes=["sums", "base"], layer=99))
    with pytest.raises(UserError, match="the router's layer is 99"):
        Weave.from_pretrained(folder, base=base)


def test_a_router_of_another_width(folder: Path, base: Base) -> None:
    Router(["sums", "base"], *(torch.ones(2, 7), torch.ones(2), torch.ones(7), torch.ones(7)), 1, 0.5).save(
        folder / "router"
    )
    name_parts(folder)
    with pytest.raises(UserError, match="reads 7 numbers a prompt, and the base gives 64"):
        Weave.from_pretrained(folder, base=base)


def test_a_weave_of_version_1_is_read(folder: Path, base: Base) -> None:
    edit(folder / "weave.json", lambda card: (card.update(schema_version=1), card.pop("files")))
    old = folder / "router" / "router.safetensors"
    save_file({name: tensor for name, tensor in load_file(old).items() if name != "basis"}, old)
    edit(folder / "router" / "router.json", lambda card: (card.update(schema_version=1), card.pop("files")))
    weave = Weave.from_pretrained(folder, base=base)
    assert weave.loaded == ["sums", "other"]
    assert weave.route(["4+1="])[0].pack == "sums"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("part", ["packs/sums", "packs", "router", "packs/sums/skillpack.json", "router/router.json"])
def test_links_in_place_of_parts(folder: Path, base: Base, tmp_path: Path, part: str, version: int) -> None:
    if version == 1:
        edit(folder / "weave.json", lambda card: (card.update(schema_version=1), card.pop("files")))
    shutil.move(folder / part, tmp_path / "moved")
    (folder / part).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is not a folder of its own|is a link"):
        Weave.from_pretrained(folder, base=base)
    if part.startswith("packs"):
        with pytest.raises(UserError, match=r"is not a folder of its own|is a link"):
            show_weave(read_card(folder), folder)


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_weave_holds_of_a_pack_what_its_card_names(base, pack_folder, tmp_path, capfd) -> None:
    pack = shutil.copytree(pack_folder, tmp_path / "sums")
    (tmp_path / "private").write_text("secret")
    (pack / "notes.txt").symlink_to(tmp_path / "private")
    (pack / "setup.py").write_text("evil")
    (pack / ".git").mkdir()
    (pack / ".git" / "config").write_text("token")
    (pack / "README.md").unlink()
    (pack / "README.md").symlink_to(tmp_path / "private")
    woven = Weave.write(tmp_path / "w", base, {"sums": pack})
    assert "'.git', 'notes.txt', 'setup.py' is not named" in " ".join(capfd.readouterr().err.split())
    for file in ("skillpack.json", "skillpack.safetensors", "README.md"):
        assert (woven / "packs" / "sums" / file).read_bytes() == (pack_folder / file).read_bytes()
    assert sorted(path.name for path in (woven / "packs" / "sums").iterdir()) == [
        "README.md", "skillpack.json", "skillpack.safetensors",
    ]  # fmt: skip
    assert not any(path.is_symlink() for path in woven.rglob("*"))


def test_a_weave_holds_of_a_backbone_what_its_card_names(base, micro_base, tmp_path) -> None:
    delta = Delta({NORM: torch.ones(64)}, base_fingerprint=base.fingerprint, base_ref=str(micro_base))
    saved = delta.save_pretrained(tmp_path / "delta")
    (tmp_path / "private").write_text("secret")
    (saved / "notes.txt").symlink_to(tmp_path / "private")
    (saved / "files").mkdir()
    (saved / "files" / "chat_template.jinja").write_text("evil")
    tuned = open_base(write_tuned(micro_base, Delta.from_pretrained(saved), tmp_path / "tuned"))
    woven = Weave.write(tmp_path / "w", tuned, {}, backbone=saved)
    assert sorted(path.name for path in (woven / "backbone").rglob("*")) == ["delta.json", "delta.safetensors"]
    shutil.move(saved / "delta.safetensors", tmp_path / "moved")
    (saved / "delta.safetensors").symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match=r"delta\.safetensors is a link"):
        Weave.write(tmp_path / "w2", tuned, {}, backbone=saved)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_numbers_of_a_pack_in_a_weave(folder: Path, base: Base) -> None:
    data = folder / "packs" / "sums" / "skillpack.safetensors"
    tensors = load_file(data)
    tensors[NORM].fill_(float("nan"))
    save_file(tensors, data)
    edit(data.with_name("skillpack.json"), lambda card: card["files"].update({data.name: sha256_file(data)}))
    name_parts(folder)
    with pytest.raises(UserError, match=rf"'{NORM}' holds NaN"):
        Weave.from_pretrained(folder, base=base)
    assert Weave.from_pretrained(folder, base=base, packs=["other"]).loaded == ["other"]


def test_a_pack_with_nan_is_not_woven(base: Base, pack_folder: Path, tmp_path: Path) -> None:
    pack = Skillpack.from_pretrained(pack_folder)
    pack.tensors[NORM].fill_(float("nan"))
    with pytest.raises(UserError, match=rf"the pack 'sums': the tensor '{NORM}' holds NaN"):
        Weave.write(tmp_path / "w", base, {"sums": pack})
    assert not (tmp_path / "w").exists()


def test_a_group_that_another_pack_means_otherwise(base: Base, pack_folder: Path) -> None:
    """``down_proj`` is 128 wide: under the name of a group that is 64 wide it cannot lie beside it."""
    good = Skillpack.from_pretrained(pack_folder)
    group = "model.layers.0.self_attn:qkv"
    other = random_pack(base.model, base.fingerprint, name="other", only=["down_proj"], smooth=False)
    other.card.entries["model.layers.0.mlp.down_proj.weight"].group = group
    weave = Weave.of(base, {"good": good})
    with pytest.raises(UserError, match=rf"matrices of 128 inputs in the group '{group}', and the pack 'good'"):
        weave.packed_model.add(weave.packed_model.prepare("other", other))
    assert weave.loaded == ["good"]
    # Alone, a name is a name; and within one width, modules that are not fed together answer as they do alone.
    assert Weave.of(base, {"other": other}).loaded == ["other"]
    mixed = random_pack(base.model, base.fingerprint, name="mixed", smooth=False, seed=2)
    plain = Weave.of(base, {"mixed": mixed}).generate(["1+1=", "2+2="], "mixed")
    for name, entry in mixed.card.entries.items():
        if entry.shape[1] == 64:
            mixed.card.entries[name] = entry.model_copy(update={"group": "all"})
    assert Weave.of(base, {"mixed": mixed, "good": good}).generate(["1+1=", "2+2="], "mixed") == plain


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_pack_whose_answers_are_no_numbers_is_named(base: Base, pack_folder: Path, temperature: float, value: float):
    good, bad = Skillpack.from_pretrained(pack_folder), Skillpack.from_pretrained(pack_folder)
    bad.tensors[NORM].fill_(value)
    weave = Weave.of(base, {"good": good, "bad": bad})
    sampling = Sampling(max_new_tokens=3, temperature=temperature)
    alone = weave.generate(["1+1="], "good", sampling)
    with pytest.raises(UserError, match="the pack 'bad' cannot answer: prompt 2: the model gives"):
        weave.generate(["1+1=", "2+2="], ["good", "bad"], sampling)
    assert weave.generate(["1+1="], "good", sampling) == alone
