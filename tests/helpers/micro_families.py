"""Micro models with random weights of every decoder family in transformers, built in milliseconds."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from skillweave.micro.tokenizer import VOCABULARY

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff"), 96),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    "num_key_value_heads": 2,
    "head_dim": 16,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "sliding_window": 64,
}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_expand": 2}

_PLAIN = """
    afmoe apertus arcee aria_text biogpt bitnet bloom cohere cohere2 cohere2_moe ctrl diffllama doge dots1 ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon falcon_mamba flex_olmo gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode
    gpt_neox gpt_neox_japanese gpt_oss granite granitemoe helium hunyuan_v1_dense hunyuan_v1_moe jais2 lfm2 llama
    llama4_text mamba minimax minimax_m2 ministral ministral3 mistral mixtral mpt nanochat nemotron olmo olmo2 olmo3
    olmo_hybrid olmoe openai-gpt persimmon phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open
    stablelm starcoder2 vaultgemma xglm
"""
_SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cwm": {"bos_token_id": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "deepseek_v3": {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 128},
    "glm4_moe": {"first_k_dense_replace": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    "granitemoeshared": {"shared_intermediate_size": 32},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"kv_channels": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "minicpm3": {"num_key_value_heads": 4},
    "modernbert-decoder": {"bos_token_id": 1},
    "opt": {"word_embed_proj_dim": 64},
    "phi": {"num_key_value_heads": 4},
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 32, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 64},
    "youtu": {"num_key_value_heads": 4},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_headdim": 32,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "num_mem_blocks": 1,
        "adapter_rank": 8,
    },
}
FAMILIES = {family: _SPECIAL.get(family, {}) for family in sorted([*_PLAIN.split(), *_SPECIAL])}
"""``model_type`` -> the config values that it needs besides the common sizes."""


def build(family: str, seed: int = 0) -> Any:
    """A random model of a family, in float32 and evaluation mode."""
    kind = CONFIG_MAPPING[family]
    known = {*inspect.signature(kind.__init__).parameters, *getattr(kind, "__dataclass_fields__", ())}
    known |= set(kind.attribute_map)
    sizes = {key: value for key, value in _SIZES.items() if key in known}
    tokens = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = kind(**{**sizes, **tokens, **FAMILIES[family]})
        return getattr(transformers, name if isinstance(name, str) else name[0])(config).float().eval()


@torch.no_grad()
def tune(model: Any, seed: int, amount: float = 0.1) -> Any:
    """Change every parameter by about ``amount`` of its norm, matrices by a matrix of rank 2; in place."""
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            left = torch.randn(*parameter.shape[:-1], 2, generator=source)
            change = left @ torch.randn(2, parameter.shape[-1], generator=source)
        else:
            change = torch.randn(parameter.shape, generator=source)
        size = amount * parameter.norm().clamp(min=1e-2) / change.norm().clamp(min=1e-9)
        parameter += (change * size).to(parameter.dtype)
    return model
