"""Reading tensors lazily, ties, damaged folders, and the fingerprint."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from helpers.micro import micro_model, save_micro
from skillweave.base import Checkpoint, fingerprint
from skillweave.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, micro_base: Path) -> Path:
    """A writable copy of the micro base."""
    return Path(shutil.copytree(micro_base, tmp_path / "copy"))


def reference_fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """The definition, on whole tensors, without our reader."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        header = [name, str(tensors[name].dtype).split(".")[1], list(tensors[name].shape)]
        sha.update(json.dumps(header).encode() + b"\n")
        sha.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{sha.hexdigest()}"


def test_fingerprint_is_the_hash_of_the_files_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert fingerprint(folder) == reference_fingerprint(tensors)
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) == reference_fingerprint(tensors)


def test_fingerprint_is_the_same_sharded_in_memory_and_with_the_tied_copy(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    tensors = load_file(folder / "model.safetensors")
    copied = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(copied, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) == fingerprint(tmp_path / "shards") == fingerprint(model)
    assert Checkpoint(folder).tied == Checkpoint(model).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert Checkpoint(folder).names() == Checkpoint(model).names() == sorted(tensors)


def test_fingerprint_depends_on_name_dtype_and_shape(tmp_path: Path) -> None:
    marks = {
        fingerprint(save_micro(tmp_path / name, **options))
        for name, options in {"a": {}, "b": {"seed": 2}, "c": {"tie": False}, "d": {"layers": 1}}.items()
    }
    marks.add(fingerprint(micro_model().bfloat16()))
    assert len(marks) == 5


def test_unlike_ends_of_a_tie_are_both_kept(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(folder)
    assert "lm_head.weight" in checkpoint
    assert not checkpoint.tied
    assert fingerprint(folder) == fingerprint(AutoModelForCausalLM.from_pretrained(folder))


def test_only_the_far_end_of_a_tie_goes_by_the_near_name(folder: Path) -> None:
    before = fingerprint(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) == before


def test_another_architecture_without_the_prefix_and_with_old_buffers(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    expected = Checkpoint(model).names()
    assert Checkpoint(tmp_path).names() == expected
    assert Checkpoint(tmp_path).tied
    raw = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    raw["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    save_file(raw, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert Checkpoint(tmp_path).names() == expected
    assert fingerprint(tmp_path) == fingerprint(model)


def test_tensors_are_those_of_the_file(micro_base: Path) -> None:
    checkpoint, tensors = Checkpoint(micro_base), load_file(micro_base / "model.safetensors")
    for name in checkpoint.names():
        assert torch.equal(checkpoint.tensor(name), tensors[name])
        assert checkpoint.shape(name) == tuple(tensors[name].shape)
        assert checkpoint.dtype(name) == torch.float32
    assert checkpoint.vocabulary_names() >= {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_meta_model_has_no_values() -> None:
    with torch.device("meta"):
        model = micro_model()
    with pytest.raises(UserError, match="has no values"):
        Checkpoint(model)


def break_nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def break_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def break_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "perceptron-9000"}')


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_into_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def break_bytes(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def break_into_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "their/base"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_nothing_there, "is not a folder"),
        (break_config, "has no config.json"),
        (break_config_json, "config.json, line 1: not valid JSON"),
        (break_architecture, "architecture 'perceptron-9000'"),
        (break_weights, "no model.safetensors"),
        (break_into_pickle, "pickle.*save_pretrained"),
        (break_shard, "does not have the shard model-00001-of-00002.safetensors"),
        (break_bytes, "model.safetensors is damaged"),
        (break_into_adapter, "PEFT adapter.*their/base.*from_lora"),
    ],
)
def test_a_broken_folder_is_named(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message):
        Checkpoint(folder)
    with pytest.raises(UserError, match=message):
        fingerprint(folder)
