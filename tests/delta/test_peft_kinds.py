"""Every kind of adapter that PEFT can merge, on several architectures: PEFT's own merge is the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from micro import micro_model, micro_tokenizer, save_micro
from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.micro.tokenizer import VOCABULARY

IDS = torch.arange(5, 25).view(2, 10)
LINEAR = ["q_proj", "down_proj"]
LORA = {"r": 4, "target_modules": LINEAR}


def save_adapter(base: Path, folder: Path, kind: str = "Lora", **options: Any) -> Path:
    """An adapter whose every trainable number was moved away from its start."""
    torch.manual_seed(5)
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def check_against_peft(base: Path, adapter: Path, *, kind: str = "full", atol: float = 1e-5) -> Delta:
    """The delta of the adapter, which must be what PEFT merges: no more tensors, no fewer, no other values."""
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tied = getattr(before.config.get_text_config(), "tie_word_embeddings", False)
    expected, state = merged_by_peft(base, adapter), before.state_dict()
    delta = Delta.from_lora(adapter, base)
    changed = {name for name in expected if not torch.equal(expected[name], state[name])}
    assert set(delta.names()) == changed - ({"lm_head.weight"} if tied else set())
    assert changed
    assert delta.kind == kind
    for name in delta.names():
        wanted = expected[name] if delta.whole(name) else expected[name] - state[name]
        torch.testing.assert_close(delta.tensor(name).float(), wanted, atol=atol, rtol=1e-4)
        assert delta.tensor(name).shape == delta.shape(name)
        assert delta.tensor(name).dtype == delta.dtype(name)
    return delta


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("Lora", {**LORA, "use_dora": True}),
    "dora-rslora": ("Lora", {**LORA, "use_dora": True, "use_rslora": True, "lora_alpha": 3}),
    "dora-patterns": ("Lora", {**LORA, "use_dora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_pr.*": 5}}),
    "dora-regex": ("Lora", {"r": 4, "target_modules": r".*layers\.1\..*(gate|up)_proj", "use_dora": True}),
    "dora-layers": ("Lora", {**LORA, "use_dora": True, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "dora-exclude": ("Lora", {"r": 4, "target_modules": "all-linear", "exclude_modules": "down_.*", "use_dora": True}),
    "dora-saved": ("Lora", {**LORA, "use_dora": True, "modules_to_save": ["norm", "lm_head"]}),
    "pissa": ("Lora", {**LORA, "init_lora_weights": "pissa"}),
    "olora": ("Lora", {**LORA, "init_lora_weights": "olora"}),
    "trained-tokens": ("Lora", {**LORA, "trainable_token_indices": [3, 7]}),
    "adalora": ("AdaLora", {"target_modules": LINEAR, "total_step": 10}),
    "loha": ("LoHa", {**LORA, "alpha": 6, "rank_pattern": {"q_proj": 2}}),
    "lokr": ("LoKr", {**LORA, "decompose_both": True}),
    "oft": ("OFT", {"target_modules": LINEAR, "oft_block_size": 8}),
    "boft": ("BOFT", {"target_modules": LINEAR, "boft_block_size": 4}),
    "ia3": ("IA3", {"target_modules": LINEAR, "feedforward_modules": ["down_proj"]}),
    "ia3-regex": ("IA3", {"target_modules": ".*(q|down)_proj", "feedforward_modules": ".*down_proj"}),
    "vera": ("Vera", {"r": 8, "target_modules": ["q_proj", "o_proj"]}),
    "vera-drawn-anew": ("Vera", {"r": 8, "target_modules": ["q_proj", "o_proj"], "save_projection": False}),
    "fourierft": ("FourierFT", {"target_modules": LINEAR, "n_frequency": 20, "scaling": 5.0}),
    "hra": ("HRA", {"target_modules": LINEAR, "r": 4}),
    "vblora": ("VBLoRA", {"target_modules": LINEAR, "vector_length": 16, "num_vectors": 8}),
    "ln-tuning": ("LNTuning", {"target_modules": ["input_layernorm", "norm"]}),
    "randlora": ("RandLora", {"target_modules": LINEAR, "r": 8}),
    "shira": ("Shira", {"target_modules": LINEAR, "r": 2}),
    "miss": ("Miss", {"target_modules": LINEAR, "r": 4}),
    "c3a": ("C3A", {"target_modules": LINEAR, "block_size": 16}),
    "road": ("Road", {"target_modules": LINEAR, "group_size": 8}),
    "trainable-tokens": ("TrainableTokens", {"token_indices": [3, 7], "target_modules": ["embed_tokens"]}),
    "delora": ("Delora", {"target_modules": LINEAR, "r": 4}),
    "gralora": ("Gralora", {"target_modules": LINEAR, "r": 4}),
    "hira": ("Hira", {"target_modules": LINEAR, "r": 4}),
    "waveft": ("WaveFT", {"target_modules": LINEAR, "n_frequency": 20}),
    "osf": ("OSF", {"target_modules": LINEAR}),
    "unilora": ("UniLora", {"target_modules": LINEAR, "r": 4}),
    "tinylora": ("TinyLora", {"target_modules": LINEAR}),
    "glora": ("Glora", {"target_modules": LINEAR}),
    "psoft": ("Psoft", {"target_modules": LINEAR, "r": 4}),
}  # fmt: skip


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_peft_merges(tmp_path: Path, name: str, tie: bool) -> None:
    kind, options = KINDS[name]
    if tie and name == "dora-saved":
        options = {**options, "modules_to_save": ["norm"]}
    base = save_micro(tmp_path / "base", tie=tie)
    check_against_peft(base, save_adapter(base, tmp_path / "adapter", kind, **options))
