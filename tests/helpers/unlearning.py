"""Shared by the tests of CKU: settings of short runs, rows for the trainer, and tiny models of several kinds."""

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
    """The settings of a short run; a change that is a dict is merged into the default."""
    files = {side: [corpus / f"{side}.jsonl"] for side in ("forget", "retain")}
    merged = {**SETTINGS, **files}
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return CkuConfig(**merged)


def as_json(config: CkuConfig) -> dict[str, Any]:
    """The settings as another process reads them."""
    return config.model_dump(mode="json", exclude_unset=True)


def model_with(base, delta: Delta | None):
    """A float32 copy of the base with a delta and a scoring head."""
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    if delta is not None:
        delta.add_to(model)
    install_scoring_head(model)
    return model


# -- rows and a reference model for the trainer ----------------------------------------------------------------------


def rows_of(count: int = 8) -> list[dict]:
    """Pairs of prompts and answers of many lengths; the reference log-probabilities are made up."""
    tokenizer = micro_tokenizer()

    def text(index: int) -> str:
        return "abcdefgh"[: 1 + 5 * index % 8]

    forget = encode(tokenizer, [(f"who {text(i)}", text(3 * i + 1)) for i in range(count)], 64)
    retain = encode(tokenizer, [(f"and {text(i + 2)}", text(i)[::-1]) for i in range(count)], 64)
    pairs = zip(forget, retain, strict=True)
    return [{"forget": one, "retain": other, "reference": -8.0 - 3 * i} for i, (one, other) in enumerate(pairs)]


def reference_model():
    """A reference model that differs from the trained one; else the terms that compare the two would be 0."""
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
    """A random model with two layers of 12 neurons: gated, fused (``phi3``), or Conv1D with biases (``gpt2``)."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "max_position_embeddings": 32}
    options = {**shape, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"n_inner": NEURONS} if kind == "gpt2" else {"intermediate_size": NEURONS, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options, **sizes)).eval()


def parts(kind: str, weights: dict[str, torch.Tensor], layer: int, neuron: int) -> list[torch.Tensor]:
    """Views of all weights of a neuron, by the module names of this kind of model."""
    if kind == "gpt2":
        mlp = f"transformer.h.{layer}.mlp"
        return [
            weights[f"{mlp}.c_fc.weight"][:, neuron],
            weights[f"{mlp}.c_fc.bias"][neuron],
            weights[f"{mlp}.c_proj.weight"][neuron],
        ]
    mlp = f"model.layers.{layer}.mlp"
    down = weights[f"{mlp}.down_proj.weight"][:, neuron]
    if kind == "phi3":
        fused = weights[f"{mlp}.gate_up_proj.weight"]
        return [fused[neuron], fused[len(fused) // 2 + neuron], down]
    return [weights[f"{mlp}.gate_proj.weight"][neuron], weights[f"{mlp}.up_proj.weight"][neuron], down]
