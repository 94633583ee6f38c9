"""A weave on a backbone: base + delta, opened as the folder that write_tuned writes, and refused where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.micro import micro_model, save_micro
from helpers.weave_packs import random_pack
from skillweave.artefact import write_json
from skillweave.base import Checkpoint, Sampling, fingerprint, open_base
from skillweave.cli.contents import show_weave
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.weave import Weave, read_card

GREEDY = Sampling(max_new_tokens=6)
PROMPTS = ["number 1", "word number 2", "word word number 3"]
CHANGED = ("mlp.down_proj.weight", "mlp.up_proj.weight", "layernorm.weight", "embed_tokens.weight", "lm_head.weight")


def save_base(folder: Path, dtype: torch.dtype, *, tie: bool = True) -> Path:
    save_micro(folder, tie=tie)
    micro_model(tie=tie).to(dtype).save_pretrained(folder)
    return folder


def random_delta(folder: Path, *, seed: int = 0, scale: float = 0.05, dtype: torch.dtype | None = None) -> Delta:
    """A change of MLPs, norms, embedding and (where it is untied) the head."""
    base = open_base(folder)
    source = torch.Generator().manual_seed(seed)
    tensors = {
        name: (scale * torch.randn(base.checkpoint.shape(name), generator=source)).to(
            dtype or base.checkpoint.dtype(name)
        )
        for name in base.checkpoint.names()
        if name.endswith(CHANGED)
    }
    return Delta(tensors, base_fingerprint=base.fingerprint, base_ref=str(folder), provenance={"method": "cku"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("plain") / "m", torch.bfloat16)


@pytest.fixture(scope="module")
def delta_folder(plain, tmp_path_factory) -> Path:
    return random_delta(plain).save_pretrained(tmp_path_factory.mktemp("delta") / "d")


@pytest.fixture(scope="module")
def tuned(plain, delta_folder, tmp_path_factory) -> Path:
    return write_tuned(plain, Delta.from_pretrained(delta_folder), tmp_path_factory.mktemp("tuned") / "m")


@pytest.fixture(scope="module")
def packs(tuned):
    base = open_base(tuned)
    return {"sums": random_pack(base.model, base.fingerprint, name="sums")}


@pytest.fixture(scope="module")
def folder(tuned, packs, delta_folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("weave") / "w"
    return Weave.write(place, open_base(tuned), packs, backbone=delta_folder, dtype="float32")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "w")


def tensors_of(model) -> dict[str, torch.Tensor]:
    """Parameters and all buffers, also those that no file holds (the rotary frequencies)."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same_model(one, other) -> None:
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# -- one fingerprint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_memory_and_stream_have_one_fingerprint(tmp_path, dtype, tie):
    base = save_base(tmp_path / "base", dtype, tie=tie)
    delta = random_delta(base, dtype=torch.float32)
    written = fingerprint(write_tuned(base, delta, tmp_path / "tuned"))
    assert fingerprint(delta.on(Checkpoint(base))) == written
    assert delta.apply(open_base(base, dtype=dtype), in_place=True).fingerprint == written
    assert written != fingerprint(base)


@pytest.mark.parametrize("served", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie", [True, False])
def test_it_opens_bit_for_bit_as_the_folder_that_write_tuned_writes(tmp_path, stored, served, tie):
    base = save_base(tmp_path / "base", stored, tie=tie)
    # Changes far below a step of bfloat16: summed in another dtype than the stored one, they would show.
    delta = random_delta(base, scale=1e-4, dtype=torch.float32)
    tuned = write_tuned(base, delta, tmp_path / "tuned")
    weave = Weave.write(tmp_path / "w", open_base(tuned), {}, backbone=delta)
    opened = Weave.from_pretrained(weave, dtype=served).base
    assert_same_model(opened.model, open_base(tuned, dtype=served).model)
    assert opened.fingerprint == fingerprint(tuned)


def test_a_base_of_mixed_dtypes(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    weights = load_file(base / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in weights.items()}
    save_file(mixed, base / "model.safetensors", metadata={"format": "pt"})
    delta = random_delta(base, scale=1e-3)
    assert {delta.dtype(name) for name in delta.names()} == {torch.float32, torch.bfloat16}
    tuned = write_tuned(base, delta, tmp_path / "tuned")
    assert fingerprint(delta.on(Checkpoint(base))) == fingerprint(tuned)
    weave = Weave.write(tmp_path / "w", open_base(tuned), {}, backbone=delta)
    assert_same_model(Weave.from_pretrained(weave).base.model, open_base(tuned).model)


def test_a_backbone_with_more_tokens(tmp_path):
    base = save_base(tmp_path / "base", torch.float32)
    name = "model.embed_tokens.weight"
    rows = open_base(base).checkpoint.tensor(name)
    longer = torch.cat([rows + 0.01, torch.ones(3, rows.shape[1])])
    delta = Delta({name: longer}, whole={name}, base_fingerprint=fingerprint(base), base_ref=str(base))
    tuned = write_tuned(base, delta, tmp_path / "tuned")
    weave = Weave.from_pretrained(Weave.write(tmp_path / "w", open_base(tuned), {}, backbone=delta))
    assert_same_model(weave.base.model, open_base(tuned).model)
    assert weave.generate(PROMPTS, None, GREEDY) == Weave.of(open_base(tuned)).generate(PROMPTS, None, GREEDY)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_card_names_the_base_as_it_came_and_the_delta_lies_there_byte_for_byte(folder, plain, tuned, delta_folder):
    card = read_card(folder)
    assert (card.base.ref, card.base.fingerprint) == (str(plain), fingerprint(plain))
    assert card.backbone is not None
    assert card.backbone.fingerprint == fingerprint(tuned) != card.base.fingerprint
    files = sorted(path.name for path in delta_folder.iterdir())
    assert sorted(path.name for path in (folder / "backbone").iterdir()) == files
    for file in files:
        assert (folder / "backbone" / file).read_bytes() == (delta_folder / file).read_bytes()


def test_a_delta_in_memory_is_saved_as_its_folder_would_be(tuned, packs, delta_folder, tmp_path):
    delta = Delta.from_pretrained(delta_folder)
    made = Weave.write(tmp_path / "w", open_base(tuned), packs, backbone=delta)
    again = Weave.write(made, open_base(tuned), packs, backbone=made / "backbone")  # over itself, from what lies in it
    for file in delta_folder.iterdir():
        assert (again / "backbone" / file.name).read_bytes() == file.read_bytes()


def test_every_answer_is_the_unlearnt_models_with_and_without_a_pack(folder, plain, tuned, packs):
    weave = Weave.from_pretrained(folder)
    expected = Weave.of(open_base(tuned, dtype="float32"), packs)
    for pack in (None, "sums"):
        assert weave.generate(PROMPTS, pack, GREEDY) == expected.generate(PROMPTS, pack, GREEDY)
    before = Weave.of(open_base(plain, dtype="float32")).generate(PROMPTS, None, GREEDY)
    assert weave.generate(PROMPTS, None, GREEDY) != before


def test_an_open_base_is_the_backbone_itself_and_a_reference_the_base_under_it(folder, plain, tuned, tmp_path):
    base = open_base(tuned, dtype="float32")
    weave = Weave.from_pretrained(folder, base=base)
    assert weave.base is base
    moved = shutil.copytree(plain, tmp_path / "moved")
    assert_same_model(Weave.from_pretrained(folder, base=moved).base.model, base.model)
    with pytest.raises(UserError, match="the plain base without it: name the base by its reference"):
        Weave.from_pretrained(folder, base=open_base(plain))
    other = save_micro(tmp_path / "other", seed=5)
    for wrong, message in (
        (other, "was woven for /"),
        (open_base(other), "woven for the backbone of"),
        (tuned, "woven for /"),
    ):
        with pytest.raises(UserError, match=message):
            Weave.from_pretrained(folder, base=wrong)


def test_a_weave_from_before_there_were_backbones_is_read(copy, tuned):
    card = json.loads((copy / "weave.json").read_text())
    del card["backbone"], card["files"]
    card["schema_version"] = 1
    card["base"] = {"ref": str(tuned), "fingerprint": fingerprint(tuned)}
    write_json(copy / "weave.json", card)
    assert read_card(copy).backbone is None
    assert Weave.from_pretrained(copy).loaded == ["sums"]


def test_inspect_tells_of_the_backbone(folder, capsys):
    card = read_card(folder)
    show_weave(card, folder)
    shown = " ".join(capsys.readouterr().out.split())
    assert card.backbone is not None
    assert f"backbone the base after cku ({card.backbone.fingerprint[:23]}...) 9 tensors changed" in shown


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_missing_or_damaged_backbone(copy):
    weights = copy / "backbone" / "delta.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"backbone/delta\.safetensors is damaged"):
        Weave.from_pretrained(copy)
    shutil.rmtree(copy / "backbone")
    with pytest.raises(UserError, match="backbone is missing: the weave is incomplete"):
        Weave.from_pretrained(copy)


def name_backbone(weave: Path) -> None:
    """Write the hash of the backbone's card into the weave's, as its author can."""
    card = json.loads((weave / "weave.json").read_text())
    card["files"]["backbone/delta.json"] = sha256_file(weave / "backbone" / "delta.json")
    write_json(weave / "weave.json", card)


def test_another_backbone_in_its_place(copy, plain, tmp_path):
    shutil.rmtree(copy / "backbone")
    random_delta(plain, seed=1).save_pretrained(copy / "backbone")
    with pytest.raises(UserError, match=r"backbone/delta\.json is damaged"):
        Weave.from_pretrained(copy)
    name_backbone(copy)
    with pytest.raises(UserError, match="another backbone than the packs were made on"):
        Weave.from_pretrained(copy)
    random_delta(save_micro(tmp_path / "other", seed=5)).save_pretrained(copy / "backbone")
    name_backbone(copy)
    with pytest.raises(UserError, match="belongs on another base than the weave"):
        Weave.from_pretrained(copy)


def test_what_does_not_go_together_is_not_written(plain, tuned, packs, delta_folder, tmp_path):
    place = tmp_path / "w"
    with pytest.raises(UserError, match="the backbone's delta makes sha256"):
        Weave.write(place, open_base(plain), {}, backbone=delta_folder)
    with pytest.raises(UserError, match="the backbone's delta makes sha256"):
        Weave.write(place, open_base(tuned), packs, backbone=random_delta(plain, seed=1))
    base = open_base(plain)
    with pytest.raises(UserError, match="belongs on"):
        Weave.write(place, open_base(tuned), {"old": random_pack(base.model, base.fingerprint)}, backbone=delta_folder)
    assert not place.exists()
