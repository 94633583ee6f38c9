"""Every kind of adapter that PEFT can merge, on several architectures: PEFT's own merge is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from helpers.micro import micro_model, save_micro
from helpers.tuned import save_adapter
from skillweave.base import fingerprint, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.micro.tokenizer import VOCABULARY

IDS = torch.arange(5, 25).view(2, 10)
LINEAR = ["q_proj", "down_proj"]
LORA = {"r": 4, "target_modules": LINEAR}
DORA = {**LORA, "use_dora": True}


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def check_against_peft(base: Path, adapter: Path, *, kind: str = "full", atol: float = 1e-5) -> Delta:
    """The delta of the adapter, which must be what PEFT merges: no more tensors, no fewer, no other values."""
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tied = getattr(before.config.get_text_config(), "tie_word_embeddings", False)
    # By the names of the files: transformers fuses the experts of a mixture while it loads them.
    expected, state = (
        revert_weight_conversion(before, values) for values in (merged_by_peft(base, adapter), before.state_dict())
    )
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
    "dora-patterns": ("Lora", {**DORA, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_pr.*": 5}}),
    "dora-regex": ("Lora", {"r": 4, "target_modules": r".*layers\.1\..*(gate|up)_proj", "use_dora": True}),
    "dora-layers": ("Lora", {**LORA, "use_dora": True, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "dora-exclude": ("Lora", {"r": 4, "target_modules": "all-linear", "exclude_modules": "down_.*", "use_dora": True}),
    "dora-saved": ("Lora", {**LORA, "use_dora": True, "modules_to_save": ["norm", "lm_head"]}),
    "pissa": ("Lora", {**LORA, "init_lora_weights": "pissa"}),
    "olora": ("Lora", {**LORA, "init_lora_weights": "olora"}),
    "trained-tokens": ("Lora", {**LORA, "trainable_token_indices": [3, 7]}),
    "qalora": ("Lora", {**LORA, "use_qalora": True, "qalora_group_size": 8}),
    "bdlora": ("Lora", {**LORA, "use_bdlora": BdLoraConfig(["q_proj"], ["down_proj"], nblocks=2)}),
    "kasa": ("Lora", {**LORA, "kasa_config": KasaConfig()}),
    "velora": ("Lora", {**LORA, "velora_config": VeloraConfig()}),
    "monteclora": ("Lora", {**LORA, "monteclora_config": MontecloraConfig()}),
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
    "miss-bat": ("Miss", {"target_modules": LINEAR, "r": 4, "init_weights": "bat"}),
    "adamss": ("Adamss", {"target_modules": LINEAR}),
    "deft": ("Deft", {"target_modules": LINEAR}),
    "frod": ("Frod", {"target_modules": LINEAR}),
    "peanut": ("Peanut", {"target_modules": LINEAR}),
    "pvera": ("Pvera", {"target_modules": ["q_proj", "o_proj"]}),
    "supertuning": ("Supertuning", {"target_modules": LINEAR}),
}  # fmt: skip


SMALL = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
GPT2 = {"vocab_size": len(VOCABULARY), "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "gpt2-dora": ("GPT2", GPT2, "Lora", {"r": 2, "target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "gpt2-bias": ("GPT2", GPT2, "Lora", {"r": 2, "target_modules": ["c_attn"], "lora_bias": True}),
    "gpt2-ia3": ("GPT2", GPT2, "IA3", {"target_modules": ["c_attn", "c_proj"], "feedforward_modules": ["c_proj"]}),
    "gpt2-tokens": ("GPT2", GPT2, "Lora", {"r": 2, "target_modules": ["c_attn"], "trainable_token_indices": [3]}),
    "qwen2-bias": ("Qwen2", SMALL, "Lora", {**LORA, "bias": "lora_only", "use_dora": True}),
    "qwen3-loha": ("Qwen3", SMALL, "LoHa", LORA),
    "gemma-pissa": ("Gemma", SMALL, "Lora", {**LORA, "init_lora_weights": "pissa"}),
    "gemma2-oft": ("Gemma2", SMALL, "OFT", {"target_modules": LINEAR, "oft_block_size": 8}),
    "phi3-dora": ("Phi3", SMALL, "Lora", {"r": 2, "target_modules": ["qkv_proj", "down_proj"], "use_dora": True}),
    "mixtral-experts": ("Mixtral", SMALL, "Lora", {"r": 2, "target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "qwen3moe-experts": (
        "Qwen3Moe",
        {**SMALL, "num_experts": 4, "moe_intermediate_size": 16},
        "Lora",
        {"r": 2, "target_modules": ["q_proj"], "target_parameters": EXPERTS},
    ),
    "qwen3moe-all-linear": (  # PEFT writes a pattern for the joined tensor, which has twice the rank
        "Qwen3Moe",
        {**SMALL, "num_experts": 4, "moe_intermediate_size": 16},
        "Lora",
        {"r": 2, "target_modules": "all-linear", "target_parameters": EXPERTS},
    ),
    "mixtral-expert-ranks": (
        "Mixtral",
        SMALL,
        "Lora",
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.down_proj": 3},
            "alpha_pattern": {r".*\.gate_up_proj": 7, "q_proj": 5},
        },
    ),
}


def test_adalora_after_it_dropped_ranks(micro_base: Path, tmp_path: Path) -> None:
    """Its rank_pattern is a mask for each layer, not a number."""
    torch.manual_seed(5)
    config = peft.AdaLoraConfig(target_modules=LINEAR, init_r=4, target_r=2, total_step=10, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(micro_base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    singular = [name.removeprefix("base_model.model.") for name, _ in model.named_parameters() if "lora_E" in name]
    model.peft_config["default"].rank_pattern = {name: [True, False, True, False] for name in singular}
    model.save_pretrained(tmp_path / "adapter")
    check_against_peft(micro_base, tmp_path / "adapter")


@pytest.mark.parametrize("init", ["mica", "orthogonal", "gaussian", "eva"])
def test_an_initialisation_that_leaves_the_base_alone_is_plain_lora(
    micro_base: Path, tmp_path: Path, init: str
) -> None:
    adapter = save_adapter(micro_base, tmp_path / "adapter", **LORA, init_lora_weights=init)
    check_against_peft(micro_base, adapter, kind="lora")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_what_peft_merges_on_other_architectures(tmp_path: Path, name: str) -> None:
    architecture, shape, kind, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    check_against_peft(tmp_path / "base", save_adapter(tmp_path / "base", tmp_path / "adapter", kind, **options))


def test_a_bfloat16_base_is_merged_in_float32(tmp_path: Path) -> None:
    base = tmp_path / "base"
    micro_model(tie=False).bfloat16().save_pretrained(base)
    check_against_peft(base, save_adapter(base, tmp_path / "adapter", **LORA, use_dora=True), atol=1e-4)


def test_a_model_in_memory_is_left_as_it_is(micro_base: Path, tmp_path: Path) -> None:
    """OLoRA changes the base's weights in place while PEFT builds its layers."""
    adapter = save_adapter(micro_base, tmp_path / "adapter", **LORA, init_lora_weights="olora")
    model, mark = AutoModelForCausalLM.from_pretrained(micro_base), fingerprint(micro_base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours, files = Delta.from_lora(adapter, model), Delta.from_lora(adapter, micro_base)
    assert ours.names() == files.names()
    assert all(torch.equal(ours.tensor(name), files.tensor(name)) for name in ours.names())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "peft_config")
    assert fingerprint(micro_base) == mark


def test_merged_it_is_saved_and_applied_as_any_delta(micro_base: Path, tmp_path: Path, capsys) -> None:
    adapter = save_adapter(micro_base, tmp_path / "adapter", **LORA, use_dora=True)
    delta = Delta.from_lora(adapter, micro_base)
    assert "merged into its base tensor by tensor: 'use_dora' is set" in " ".join(capsys.readouterr().err.split())
    delta.save_pretrained(tmp_path / "delta")
    delta = Delta.from_pretrained(tmp_path / "delta")
    assert delta.provenance["merged"] == "'use_dora' is set"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(micro_base), adapter).eval()
    with torch.no_grad():
        applied = delta.apply(open_base(micro_base, device="cpu")).model(IDS).logits
        torch.testing.assert_close(applied, model(IDS).logits, atol=1e-4, rtol=1e-4)


BOTH = {"r": 2, "target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}


def test_both_ends_of_a_tie_trained_as_one_are_one_change(micro_base: Path, tmp_path: Path) -> None:
    """Against the adapter at work: PEFT's merge adds the change of a tied embedding twice."""
    adapter = save_adapter(micro_base, tmp_path / "adapter", **BOTH)
    delta = Delta.from_lora(adapter, micro_base)
    assert "model.embed_tokens.weight" in delta.names()
    assert "lm_head.weight" not in delta.names()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(micro_base), adapter).eval()
    with torch.no_grad():
        applied = delta.apply(open_base(micro_base, device="cpu")).model(IDS).logits
        torch.testing.assert_close(applied, model(IDS).logits, atol=1e-4, rtol=1e-4)


SAVED = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
ONE_END = {
    "saved": ("Lora", SAVED, "modules_to_save made a copy for one of the two"),
    "dora": ("Lora", {"r": 2, "target_modules": ["embed_tokens"], "use_dora": True}, r"'model\.embed_tokens\.weight'"),
    "dora-both": ("Lora", {**BOTH, "use_dora": True}, r"or both differently"),  # a magnitude for each end
    "loha-head": ("LoHa", {"r": 2, "target_modules": ["lm_head"]}, r"changes 'lm_head\.weight', which .* ties to"),
}


@pytest.mark.parametrize("name", ONE_END)
def test_one_end_of_a_tie_is_refused(micro_base: Path, tmp_path: Path, name: str) -> None:
    kind, options, message = ONE_END[name]
    adapter = save_adapter(micro_base, tmp_path / "adapter", kind, **options)
    with pytest.raises(UserError, match=message):
        Delta.from_lora(adapter, micro_base)


def test_saved_for_both_ends_is_one_whole_tensor(micro_base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(micro_base, tmp_path / "adapter", **SAVED, ensure_weight_tying=True)
    delta = check_against_peft(micro_base, adapter, kind="lora")
    assert delta.whole("model.embed_tokens.weight")


TIED = ("dora", "dora-exclude", "trained-tokens", "vera", "osf", "trainable-tokens")


@pytest.mark.parametrize(("name", "tie"), [*((name, False) for name in KINDS), *((name, True) for name in TIED)])
def test_it_is_what_peft_merges(tmp_path: Path, name: str, tie: bool) -> None:
    kind, options = KINDS[name]
    base = save_micro(tmp_path / "base", tie=tie)
    check_against_peft(base, save_adapter(base, tmp_path / "adapter", kind, **options))
