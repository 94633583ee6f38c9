"""What the tests of CKU share: the settings of their runs, ways to look at one, tiny models of several kinds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.micro import micro_model, micro_tokenizer
from skillweave.delta import Delta
from skillweave.methods.cku import CkuConfig
from skillweave.methods.training.head import install_scoring_head
from skillweave.methods.training.sft import encode

SETTINGS: dict[str, Any] = {
    "bf16": False,
    "localise": {"freeze": "useful", "ratio": 0.5, "layers": "all", "scorer": "wanda"},
    "objective": {"loss": "npo", "mu": 1.0, "sign_agreement": False},
    "training": {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.1, "warmup": 0.0},
    "watch": {"every": 2, "held_out": 4, "budget": None, "goal": 0.0},
    "save_every": 3,
}
REFUSAL = {"text": "no.", "steps": 15, "batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.1}


def settings(corpus: Path, **changes) -> CkuConfig:
    """The settings of a short run; a change that is a dict is laid over what stands there."""
    files = {side: [corpus / f"{side}.jsonl"] for side in ("forget", "retain")}
    merged = {**SETTINGS, **files}
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return CkuConfig(**merged)


def as_json(config: CkuConfig) -> dict[str, Any]:
    """Settings as another process reads them."""
    return config.model_dump(mode="json", exclude_unset=True)


def model_with(base, delta: Delta | None):
    """A float32 copy of the base with a delta, bearing a scoring head."""
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    if delta is not None:
        delta.add_to(model)
    install_scoring_head(model)
    return model


# -- rows and a start for the trainer ----------------------------------------------------------------------------------


def rows_of(count: int = 8) -> list[dict]:
    """Pairs whose prompts and answers are of many lengths; the references are made up."""

    tokenizer = micro_tokenizer()

    def text(index: int) -> str:
        return "abcdefgh"[: 1 + 5 * index % 8]

    forget = encode(tokenizer, [(f"who {text(i)}", text(3 * i + 1)) for i in range(count)], 64)
    retain = encode(tokenizer, [(f"and {text(i + 2)}", text(i)[::-1]) for i in range(count)], 64)
    return [{"forget": f, "retain": r, "reference": -8.0 - 3 * i}
            for i, (f, r) in enumerate(zip(forget, retain, strict=True))]  # fmt: skip


def start_model():
    """Not the model that is trained: else the terms that compare with it are 0, and have no gradient."""
    model = copy.deepcopy(micro_model())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


# -- neurons of models of several kinds, by hand ---------------------------------------------------------------------

NEURONS = 12
LORA = {
    "llama": ["gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_fc", "mlp.c_proj"],
    "phi3": ["gate_up_proj", "down_proj"],
}


def tiny(kind: str):
    """A random model, two layers of 12 neurons: gated, fused (``phi3``) or plain with biases, Conv1D (``gpt2``)."""
    torch.manual_seed(0)
    options = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": 50,
               "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    sizes = {"n_inner": NEURONS} if kind == "gpt2" else {"intermediate_size": NEURONS, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options, **sizes)).eval()


def parts(kind: str, weights: dict[str, torch.Tensor], layer: int, neuron: int) -> list[torch.Tensor]:
    """Views of all that a neuron is, by the names of this kind of model."""
    if kind == "gpt2":
        mlp = f"transformer.h.{layer}.mlp"
        return [weights[f"{mlp}.c_fc.weight"][:, neuron], weights[f"{mlp}.c_fc.bias"][neuron],
                weights[f"{mlp}.c_proj.weight"][neuron]]  # fmt: skip
    mlp = f"model.layers.{layer}.mlp"
    down = weights[f"{mlp}.down_proj.weight"][:, neuron]
    if kind == "phi3":
        fused = weights[f"{mlp}.gate_up_proj.weight"]
        return [fused[neuron], fused[len(fused) // 2 + neuron], down]
    return [weights[f"{mlp}.gate_proj.weight"][neuron], weights[f"{mlp}.up_proj.weight"][neuron], down]
