"""PEFT adapters as deltas: PEFT's own merge is the reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from helpers.micro import micro_tokenizer, save_micro
from helpers.tuned import LINEAR, save_lora
from skillweave.base import fingerprint, open_base
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.micro.tokenizer import VOCABULARY

IDS = torch.arange(5, 25).view(2, 10)


def peft_logits(base: Path, adapter: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(IDS).logits


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    return save_micro(tmp_path / "untied", tie=False)


CASES = {
    "plain": {},
    "alpha": {"lora_alpha": 32},
    "rank-stabilised": {"lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "lora_alpha": 3,
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 24, "v_proj": 5},
    },
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "modules-to-save": {"modules_to_save": ["lm_head", "norm"]},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_it_is_what_peft_merges(untied: Path, tmp_path: Path, options: dict) -> None:
    adapter = save_lora(untied, tmp_path / "adapter", **options)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied), adapter)
    merged = loaded.merge_and_unload().state_dict()
    before = AutoModelForCausalLM.from_pretrained(untied).state_dict()
    delta = Delta.from_lora(adapter, untied)
    assert delta.kind == "lora"
    assert delta.base_fingerprint == fingerprint(untied)
    assert set(delta.names()) == {name for name in merged if not torch.equal(merged[name], before[name])}
    for name in delta.names():
        expected = merged[name] if delta.whole(name) else merged[name] - before[name]
        torch.testing.assert_close(delta.tensor(name), expected, atol=1e-6, rtol=1e-5)
        assert delta.tensor(name).shape == delta.shape(name)
    # PEFT saves the rows of a targeted embedding beside its factors; they are the base's own, so they are ignored.
    stored = load_file(adapter / "adapter_model.safetensors")
    assert delta.nbytes == sum(tensor.nbytes for name, tensor in stored.items() if "base_layer" not in name)
    assert delta.bf16_nbytes == 2 * sum(merged[name].numel() for name in delta.names())


def test_saved_it_is_what_peft_opens_and_applied_it_gives_the_same_logits(micro_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter", lora_alpha=16)
    Delta.from_lora(adapter, micro_base).save_pretrained(tmp_path / "delta")
    names = {"adapter_config.json", "adapter_model.safetensors", "delta.json"}
    assert {path.name for path in (tmp_path / "delta").iterdir()} == names
    for name in names - {"delta.json"}:
        assert (tmp_path / "delta" / name).read_bytes() == (adapter / name).read_bytes()
    expected = peft_logits(micro_base, tmp_path / "delta")
    assert not torch.allclose(expected, AutoModelForCausalLM.from_pretrained(micro_base)(IDS).logits, atol=0.1)
    delta = Delta.from_pretrained(tmp_path / "delta")
    assert delta.kind == "lora"
    assert delta.base_fingerprint == fingerprint(micro_base)
    with torch.no_grad():
        ours = delta.apply(open_base(micro_base, device="cpu")).model(IDS).logits
        files = open_base(write_tuned(micro_base, delta, tmp_path / "out"), device="cpu").model(IDS).logits
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(files, ours)


def test_an_adapter_folder_can_become_a_delta_in_place(micro_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    before = peft_logits(micro_base, adapter)
    Delta.from_lora(adapter, micro_base).save_pretrained(adapter)
    assert Delta.from_pretrained(adapter).names()
    assert torch.equal(peft_logits(micro_base, adapter), before)


def test_matrices_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's Conv1D holds (in, out), and its square c_proj would fit either way."""
    config = GPT2Config(vocab_size=len(VOCABULARY), n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    micro_tokenizer().save_pretrained(tmp_path / "base")
    save_lora(tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True)
    Delta.from_lora(tmp_path / "adapter", tmp_path / "base").save_pretrained(tmp_path / "delta")
    delta = Delta.from_pretrained(tmp_path / "delta")
    assert "transformer.h.0.attn.c_proj.weight" in delta
    with torch.no_grad():
        ours = delta.apply(open_base(tmp_path / "base", device="cpu")).model(IDS).logits
    torch.testing.assert_close(ours, peft_logits(tmp_path / "base", tmp_path / "adapter"), atol=1e-4, rtol=1e-4)


def test_one_end_of_a_tie_is_refused(micro_base: Path, tmp_path: Path) -> None:
    for target in ("lm_head", "embed_tokens"):
        adapter = save_lora(micro_base, tmp_path / target, target_modules=[target, "q_proj"])
        with pytest.raises(UserError, match=rf"{target}\.weight', which .* ties to"):
            Delta.from_lora(adapter, micro_base)


def test_another_base_is_named(micro_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"in the shape \(64, 64\).*it is \(32, 32\)|\(64, 128\).*\(32, 64\)"):
        Delta.from_lora(adapter, save_micro(tmp_path / "narrow", hidden=32))
    with pytest.raises(UserError, match=r"changes 'model\.layers\.1\..*does not have"):
        Delta.from_lora(adapter, save_micro(tmp_path / "shallow", layers=1))
    other = open_base(save_micro(tmp_path / "other", seed=4), device="cpu")
    with pytest.raises(UserError, match="the delta belongs on"):
        Delta.from_lora(adapter, micro_base).apply(other)


def test_broken_adapters_are_named(micro_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"without a fingerprint: open it with Delta\.from_lora"):
        Delta.from_pretrained(adapter)
    half = Path(shutil.copytree(adapter, tmp_path / "half"))
    tensors = load_file(half / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, half / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"'model\.layers\.0\.self_attn\.q_proj\.weight' has only one of the factors"):
        Delta.from_lora(half, micro_base)
    (half / "adapter_model.safetensors").rename(half / "adapter_model.bin")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors.*pickle"):
        Delta.from_lora(half, micro_base)
    (half / "adapter_model.bin").rename(half / "adapters.safetensors")
    with pytest.raises(UserError, match=r"an adapter of MLX.*mlx_lm\.fuse"):
        Delta.from_lora(half, micro_base)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_model.model.", "base_model.model._orig_mod.", r"as torch\.compile names it.*take '_orig_mod\.' out"),
        ("", "module.", r"as DistributedDataParallel or DeepSpeed names it"),
        ("_A.weight", "_A.default.weight", "save it with PEFT's save_pretrained"),
    ],
)
def test_names_of_an_adapter_that_others_changed(
    micro_base: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        Delta.from_lora(adapter, micro_base)


def test_damage_in_a_saved_adapter_is_named(micro_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(micro_base, tmp_path / "adapter")
    Delta.from_lora(adapter, micro_base).save_pretrained(adapter)
    data = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (adapter / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        Delta.from_pretrained(adapter)


def test_a_peft_model_in_memory_is_sent_the_right_way(micro_base: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(micro_base), LoraConfig(r=2, target_modules=LINEAR))
    with pytest.raises(UserError, match=r"PEFT model.*Delta\.from_lora"):
        Delta.between(micro_base, model)
