"""Deltas and adapters that a stranger wrote: what does not fit is refused by the file and the key."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tuned import save_lora, save_tuned
from skillweave.base import open_base
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError

NORM = "model.norm.weight"


@pytest.fixture
def saved(micro_base: Path, tmp_path: Path) -> Path:
    return Delta.between(micro_base, save_tuned(micro_base, tmp_path / "tuned")).save_pretrained(tmp_path / "delta")


@pytest.fixture
def lora(micro_base: Path, tmp_path: Path) -> Path:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    return Delta.from_lora(adapter, micro_base).save_pretrained(tmp_path / "lora")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def name_hash(folder: Path, name: str) -> None:
    """Write the SHA-256 of a file into the card, as its author can."""
    sha = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(folder / "delta.json", lambda card: card["files"].update({name: sha}))


CARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no version": (lambda c: c.pop("schema_version"), "schema_version is missing"),
    "version 0": (lambda c: c.update(schema_version=0), "schema_version is 0"),
    "an absolute file": (lambda c: c["files"].update({"/etc/passwd": "0" * 64}), "is not a plain file name"),
    "a file above": (lambda c: c["files"].update({"files/../../x": "0" * 64}), "is not a plain file name"),
    "a file of no kind": (lambda c: c["files"].update({"x.safetensors": "0" * 64}), r"'x\.safetensors' does not fit"),
    "an adapter's file": (lambda c: c["files"].update({"adapter_config.json": "0" * 64}), "does not fit"),
    "names that differ in case": (
        lambda c: c["files"].update({"DELTA.safetensors": "0" * 64}), "differ in case only"),
    "weights nobody hashed": (lambda c: c["files"].clear(), r"entries\..*\.file: .* not a file of tensors"),
    "a tensor in another file": (lambda c: c["entries"][NORM].update(file="x"), rf"entries\.{NORM}\.file: 'x'"),
    "a tensor in a path": (lambda c: c["entries"][NORM].update(file="../x"), "is not a plain file name"),
    "lora in a full delta": (lambda c: c["entries"][NORM].update(stored="lora"), "has no LoRA"),
    "transposed": (lambda c: c["entries"][NORM].update(transposed=True), "has no LoRA"),
    "transposed, a number": (lambda c: c["entries"][NORM].update(transposed=1), "transposed: .*valid boolean"),
    "another kind": (lambda c: c.update(kind="lora"), "does not fit a delta of the kind 'lora'"),
    "shape true": (lambda c: c["entries"][NORM].update(shape=[True]), "shape"),
    "shape 0": (lambda c: c["entries"][NORM].update(shape=[0]), "shape"),
    "an unknown dtype": (lambda c: c["entries"][NORM].update(dtype="__class__"), "dtype"),
    "a tensor without an entry": (lambda c: c["entries"].pop(NORM), f"holds the tensor '{NORM}' that no entry"),
    "an entry's name with an escape": (lambda c: c["entries"].update({"\x1b[2J": c["entries"][NORM]}), "entries"),
    "provenance a list": (lambda c: c.update(provenance=[]), "provenance: .*dictionary"),
    "provenance NaN": (lambda c: c.update(provenance={"x": float("nan")}), "nan"),
    "endless provenance": (lambda c: c.update(provenance={"x": "y" * 2**21}), "more than 1,048,576"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CARDS.values(), ids=CARDS.keys())
def test_cards_are_refused_by_key(saved: Path, change, message: str) -> None:
    edit(saved / "delta.json", change)
    with pytest.raises(UserError, match=rf"(?si)delta.*{message}"):
        Delta.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "may not travel"),
        ("config.json", b"{}", "may not travel"),
        ("modeling_x.py", b"", "may not travel"),
        ("pytorch_model.bin", b"", "may not travel"),
        ("README.md", b"", "may not travel"),
        ("chat_template.jinja.py", b"", "may not travel"),
        ("additional_chat_templates/x.py", b"", "may not travel"),
        ("additional_chat_templates/deep/x.jinja", b"", "may not travel"),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["x.Evil", null]}}', "'auto_map' names code"),
        ("generation_config.json", b'{"custom_generate": "a/b"}', "'custom_generate' names code"),
        ("tokenizer.json", b"[]", "expected an object with keys, found list"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("chat_template.jinja", b"\xff\xfe\xff", "not UTF-8 text"),
    ],
)
def test_files_that_may_not_travel(saved: Path, name: str, content: bytes, message: str) -> None:
    path = saved / "files" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    name_hash(saved, f"files/{name}")
    with pytest.raises(UserError, match=message):
        Delta.from_pretrained(saved)


def test_a_carried_link_is_refused_on_both_ways(saved: Path, micro_base: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    (saved / "files").mkdir()
    (saved / "files" / "chat_template.jinja").symlink_to(tmp_path / "private")
    name_hash(saved, "files/chat_template.jinja")
    with pytest.raises(UserError, match=r"chat_template\.jinja is a link"):
        Delta.from_pretrained(saved)
    (tmp_path / "tuned" / "chat_template.jinja").unlink()
    (tmp_path / "tuned" / "chat_template.jinja").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"chat_template\.jinja is a link"):
        Delta.between(micro_base, tmp_path / "tuned")


def test_a_written_model_holds_no_file_that_a_link_of_the_base_points_to(tmp_path: Path, micro_base: Path) -> None:
    base = shutil.copytree(micro_base, tmp_path / "base")
    (tmp_path / "private").write_text("secret")
    (base / "notes.txt").symlink_to(tmp_path / "private")
    delta = Delta({NORM: torch.ones(64)}, base_fingerprint=open_base(micro_base).fingerprint)
    with pytest.raises(UserError, match=r"notes\.txt is a link"):
        write_tuned(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_card_does_not_name_is_not_read(saved: Path, tmp_path: Path) -> None:
    (saved / "files").mkdir()
    (saved / "files" / "chat_template.jinja").write_text("{{ evil }}")
    os.mkfifo(saved / "files" / "generation_config.json")
    delta = Delta.from_pretrained(saved)
    assert not delta.carried
    again = delta.save_pretrained(tmp_path / "again")
    assert sorted(path.name for path in again.rglob("*")) == ["delta.json", "delta.safetensors"]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_number_that_is_none_is_told_when_its_tensor_is_read(saved: Path, micro_base: Path, bad: float) -> None:
    tensors = load_file(saved / "delta.safetensors")
    tensors[NORM][7] = bad
    save_file(tensors, saved / "delta.safetensors")
    name_hash(saved, "delta.safetensors")
    delta = Delta.from_pretrained(saved)
    for use in (lambda: delta.tensor(NORM), lambda: delta.apply(open_base(micro_base))):
        with pytest.raises(UserError, match=rf"delta\.safetensors: the tensor '{NORM}' holds NaN or infinity"):
            use()


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 0}, "lora_alpha is 0; expected a finite number above 0"),
        ({"lora_alpha": -8}, "lora_alpha is -8"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e"),
        ({"lora_alpha": [16]}, r"lora_alpha is \[16\]"),
        ({"r": 0}, "r is 0; expected a whole number from 1 on"),
        ({"r": 4.0}, r"r is 4\.0"),
        ({"r": True}, "r is True"),
        ({"r": 2**40}, "r is 1099511627776"),
        ({"r": 8}, "have the rank 4, and adapter_config.json names 8"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj is 0"),
        ({"rank_pattern": [1]}, "'rank_pattern' is a list, which PEFT never writes there"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, r"alpha_pattern\.q_proj is nan"),
        ({"alpha_pattern": {"q_proj": None}}, r"alpha_pattern\.q_proj is None"),
        ({"use_rslora": "no"}, "use_rslora is 'no'; expected true or false"),
    ],
)
def test_numbers_of_an_adapters_config(micro_base: Path, tmp_path: Path, values: dict, message: str) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    edit(adapter / "adapter_config.json", lambda config: config.update(values))
    with pytest.raises(UserError, match=f"adapter.*{message}"):
        Delta.from_lora(adapter, micro_base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_in_place_of_an_adapters_file(micro_base: Path, tmp_path: Path, name: str) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    shutil.move(adapter / name, tmp_path / "moved")
    (adapter / name).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match=rf"{name} is a link"):
        Delta.from_lora(adapter, micro_base)


def test_a_config_that_is_no_object(micro_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config\.json: expected an object"):
        Delta.from_lora(adapter, micro_base)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def edit_adapter(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", [A, B])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_factors_that_make_no_number(micro_base: Path, tmp_path: Path, name: str, bad: float) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    edit_adapter(adapter, lambda tensors: tensors.update({A: tensors[A] + 10, B: tensors[B] + 10}))
    edit_adapter(adapter, lambda tensors: tensors[name].fill_(bad))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: the tensor '.*q_proj\.weight' holds NaN or inf"):
        Delta.from_lora(adapter, micro_base).tensor("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({A: torch.zeros(0, 64), B: torch.zeros(64, 0)}), "have the rank 0"),
        (lambda t: t.update({A: torch.zeros(3, 64), B: torch.zeros(64, 3)}), "have the rank 3, and .* names 4"),
        (lambda t: t.update({A.replace("q_proj", "q_proj.base_layer"): t[A].clone()}), "are two names of one tensor"),
        (
            lambda t: t.update({
                "base_model.model.model.norm.weight": torch.ones(64),
                "base_model.model.model.norm.modules_to_save.weight": torch.zeros(64),
            }),
            "are two names of one tensor",
        ),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_their_config(micro_base: Path, tmp_path: Path, change, message: str) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    edit_adapter(adapter, change)
    with pytest.raises(UserError, match=message):
        Delta.from_lora(adapter, micro_base)


def test_a_saved_lora_holds_the_tensors_of_its_card_alone(lora: Path) -> None:
    edit(lora / "delta.json", lambda card: card["entries"].pop("model.layers.0.self_attn.q_proj.weight"))
    with pytest.raises(UserError, match=r"holds the tensor '.*q_proj\.weight' that no entry"):
        Delta.from_pretrained(lora)
