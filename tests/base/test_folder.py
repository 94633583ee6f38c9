"""Which files of a folder are the model, and what is refused because it could be read in two ways, or never ends."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.micro import micro_model, save_micro
from skillweave.base import Checkpoint, fingerprint, open_base, open_tokenizer
from skillweave.base.folder import find_model
from skillweave.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, micro_base: Path) -> Path:
    """A writable copy of the micro base."""
    return Path(shutil.copytree(micro_base, tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def shard(folder: Path, *, moved: bool = False) -> dict[str, str]:
    """Save the model as two files of half the tensors each, with an index; return its weight_map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + (at % 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(where.values()):
        held = {name: tensors[name] for name in names if where[name] == file or moved}
        save_file(held, folder / file, metadata={"format": "pt"})
    write_index(folder, where)
    return where


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def single_and_index(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    write_index(folder, {"model.norm.weight": "model-00001-of-00001.safetensors"})


def in_two_shards(folder: Path) -> None:
    shard(folder, moved=True)


def index_of_another(folder: Path) -> None:
    write_index(folder, {**shard(folder), "model.more.weight": "model-00001-of-00002.safetensors"})


def index_with(value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        write_index(folder, {"model.norm.weight": value})

    return damage


def other_weights(folder: Path) -> None:
    edit(folder / "config.json", transformers_weights="other.safetensors")


def adapter_inside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def link_of(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to("../elsewhere")

    return damage


def dangling_link(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("nowhere")


def circle(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("vocab.json")


def fifo(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def two_spellings(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "norm.weight": tensors["model.norm.weight"].clone()}, folder / "model.safetensors")


def wrapped(before: str, after: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        renamed = {name.replace(before, after, 1): tensor for name, tensor in tensors.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def with_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, name: change(tensors[name])}, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def instead(*files: str) -> Callable[[Path], None]:
    """Put these files in the place of the weights, and beside them what trainers keep as pickle."""

    def damage(folder: Path) -> None:
        weights = folder / "model.safetensors"
        for name in (*files, "training_args.bin", "rng_state_0.pth", "optimizer.pt"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(weights, folder / name)
        weights.unlink()

    return damage


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (single_and_index, r"holds model\.safetensors and also model\.safetensors\.index\.json"),
        (in_two_shards, r"'.*' is in model-0000\d-of-00002\.safetensors, and also in model-0000\d"),
        (index_of_another, r"says that 'model\.more\.weight' is in model-00001-of-00002.*does not hold"),
        (index_with("../elsewhere.safetensors"), r"puts 'model\.norm\.weight' into '\.\./elsewhere"),
        (index_with("/etc/x.safetensors"), "expected the name of a .safetensors file in the same folder"),
        (index_with("pytorch_model.bin"), "expected the name of a .safetensors file"),
        (index_with(3), "into 3"),
        (index_with(["x"]), r"into \['x'\]"),
        (other_weights, "'transformers_weights' names other weights"),
        (adapter_inside, "whole model.*and an adapter"),
        (link_of("model.safetensors"), r"model\.safetensors is a link that leads out of its folder"),
        (link_of("config.json"), r"config\.json is a link that leads out"),
        (link_of("tokenizer.json"), r"tokenizer\.json is a link that leads out"),
        (dangling_link, r"vocab\.json cannot be opened"),
        (circle, r"vocab\.json cannot be opened"),
        pytest.param(
            fifo, "is not a regular file", marks=pytest.mark.skipif(sys.platform == "win32", reason="has no fifos")
        ),
        (two_spellings, r"'(model\.)?norm\.weight' and '(model\.)?norm\.weight' are both 'model\.norm\.weight'"),
        (wrapped("", "_orig_mod."), r"'_orig_mod\.model\..*' is 'model\..*that torch\.compile wrapped"),
        (wrapped("", "module._orig_mod."), r"'module\._orig_mod\.model\..*' is 'model\..*take 'module\.' out"),
        (wrapped(".mlp.", "._fsdp_wrapped_module.mlp."), r"is 'model\.layers\..*mlp.*that FSDP wrapped"),
        (wrapped("", "pretrained_model."), r"is 'model\..*that a value head of TRL wrapped"),
        (wrapped("", "base_model.model."), r"is 'model\..*that PEFT wrapped .*merge_and_unload"),
        (wrapped("q_proj.", "q_proj.base_layer."), rf"is '{Q_PROJ}' .*that PEFT wrapped .*merge_and_unload"),
        (instead(), r"no model\.safetensors: the weights are missing"),
        (instead("pytorch_model.bin"), r"as pickle \(pytorch_model\.bin\)"),
        (instead("pytorch_model_fsdp_0/__0_0.distcp"), r"FSDP.* accelerate merge-weights \S*/pytorch_model_fsdp_0 NEW"),
        (instead("zero_to_fp32.py", "global_step9/x.pt"), r"DeepSpeed.* python \S*/zero_to_fp32\.py --safe_serial"),
        (instead("checkpoint-5/config.json", "checkpoint-10/config.json"), r"Name one of them, .*/checkpoint-10$"),
        (instead("model-00001-of-00001.safetensors"), r"neither .* nor .*\.index\.json, which says that model-00001"),
        (with_tensor(Q_PROJ, lambda t: t[:, :8].clone()), rf"do not fit config\.json: '{Q_PROJ}' has the shape"),
        (with_tensor(Q_PROJ, lambda t: t[:0].clone()), rf"'{Q_PROJ}' has the shape \(0, 64\)"),
        (with_tensor(Q_PROJ, lambda t: t.to(torch.int8)), rf"'{Q_PROJ}' is stored as int8"),
        (with_tensor(Q_PROJ, lambda t: t.to(torch.float8_e4m3fn)), rf"'{Q_PROJ}'.*no quantization_config"),
    ],
)
def test_what_could_be_another_model_is_refused_by_name(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message):
        Checkpoint(folder)
    with pytest.raises(UserError, match=message):
        open_base(folder, device="cpu")


def test_what_is_not_the_model_is_not_looked_at(folder: Path) -> None:
    before = fingerprint(folder)
    for name in ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.fp16.safetensors", "evil.py"):
        (folder / name).write_bytes(b"no tensors")
    (folder / "original").mkdir()
    assert fingerprint(folder) == before
    write_index(folder, dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors"))
    assert fingerprint(folder) == before
    assert open_base(folder, device="cpu").fingerprint == before


def test_a_snapshot_of_the_hubs_cache_is_links_to_blobs(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--me--it"
    snapshot, blobs = repo / "snapshots" / "abc", repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    before = fingerprint(folder)
    for at, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{at:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{at:040x}")
    assert open_base(snapshot, device="cpu").fingerprint == before
    (tmp_path / "linked").symlink_to(snapshot)
    assert fingerprint(tmp_path / "linked") == before, "the folder itself may be a link"


ODD_CONFIGS = [
    ("[]", "expected a JSON object, found list"),
    ({"model_type": None}, "architecture"),
    ({"model_type": 3}, "architecture"),
    ({"model_type": ["llama"]}, "architecture"),
    ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}, "'evil'.*never run"),
    ({"model_type": "bert"}, "is_decoder is false, .* not a causal language model"),
    ({"model_type": "bert", "is_decoder": True}, "the weights do not have the tensor 'bert"),
    ({"model_type": "xlm"}, "causal is false, .* not a causal language model"),
    (
        '{"model_type": "xlnet", "d_model": 64, "n_head": 4, "n_layer": 2}',
        "attn_type is 'bi', .* not a causal language model",
    ),
    ({"model_type": "vit"}, "not a causal language model"),
    ({"model_type": "llava"}, "not a causal language model.*text_config"),
    ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder with a decoder, not a causal language model"),
    ({"model_type": "bart"}, "an encoder with a decoder, not a causal language model"),
    ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000"),
    ({"num_hidden_layers": 60_000, "layer_types": None}, "more than .* modules"),
    ({"num_labels": 10**9}, "num_labels is 1000000000"),
    ({"num_hidden_layers": 3}, "the weights do not have the tensor"),
    ({"num_hidden_layers": 1}, None),
    ({"vocab_size": 10**9}, "do not fit"),
    ({"vocab_size": -5}, "cannot build|does not take"),
    ({"hidden_size": -1}, "cannot build|does not take"),
    ({"num_attention_heads": 0}, "cannot build|does not take"),
    ({"num_attention_heads": "x"}, "does not take"),
    ({"hidden_act": "nope"}, "cannot build"),
    ({"dtype": "float7"}, "does not take|cannot build|cannot load"),
    ({"rope_parameters": {"rope_type": "nope"}}, "does not take|cannot build|cannot load"),
    ({"attn_implementation": "evil/kernel"}, "attn_implementation is 'evil/kernel'"),
    ({"_attn_implementation": {"": "evil/kernel"}}, "_attn_implementation is 'evil/kernel'"),
    ({"experts_implementation": 3}, "experts_implementation is 3"),
    ({"fusion_config": {}}, "fusion_config"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ({"sliding_window": "x"}, "sliding_window is 'x'"),
    ({"sliding_window": 10**20}, "sliding_window is 1000"),
    ({"eos_token_id": 10**20}, "eos_token_id is 1000"),
    ({"output_hidden_states": "x"}, "output_hidden_states is 'x'"),
    ({"quantization_config": 3}, "quantization_config is 3"),
]


@pytest.mark.parametrize(("change", "message"), ODD_CONFIGS)
def test_an_odd_config_ends_in_a_sentence(folder: Path, change: dict | str, message: str | None) -> None:
    if isinstance(change, str):
        (folder / "config.json").write_text(change)
    else:
        edit(folder / "config.json", **change)
    start = time.monotonic()
    if message is None:
        assert open_base(folder, device="cpu")
        return
    with pytest.raises(UserError, match=message):
        open_base(folder, device="cpu")
    assert time.monotonic() - start < 60, "no time is spent on layers that the files do not have"


def test_tables_far_larger_than_the_weights_are_refused(tmp_path: Path) -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=32,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        attention_types=[[["global"], 1]],
        max_position_embeddings=16,
    )
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    assert Checkpoint(tmp_path).names()
    edit(tmp_path / "config.json", max_position_embeddings=10**6)
    with pytest.raises(UserError, match=r"tables of .* GB"):
        Checkpoint(tmp_path)


def test_code_of_the_folder_is_left_aside_where_transformers_has_the_class(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    assert type(open_base(folder, device="cpu").model).__module__.startswith("transformers.")
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.T"]})
    with pytest.raises(UserError, match="needs code that lies in the folder"):
        open_tokenizer(folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Nope"}}'),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}'),
        ("tokenizer_config.json", '{"model_max_length": "long"}'),
    ],
)
def test_an_odd_tokenizer_ends_in_a_sentence(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UserError, match="tokenizer"):
        open_tokenizer(folder)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        find_model(tmp_path)


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(folder: Path, tmp_path: Path) -> None:
    """What is hashed and what is loaded come through one open file."""
    checkpoint = Checkpoint(folder)
    before = checkpoint.tensor("model.norm.weight")
    other = save_micro(tmp_path / "other", seed=9)
    os.replace(other / "model.safetensors", folder / "model.safetensors")
    assert torch.equal(checkpoint.tensor("model.norm.weight"), before)
    assert fingerprint(checkpoint) == fingerprint(micro_model())
