"""Fine-tunes and adapters of a base, with random changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

FROZEN = "model.layers.0.mlp.up_proj.weight"
LINEAR = ["q_proj", "v_proj", "down_proj"]


def save_tuned(base: Path, folder: Path, *, dtype: torch.dtype = torch.float32, step: float = 0.05) -> Path:
    """Save the base with a small random change of every tensor except ``FROZEN``; return ``folder``."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != FROZEN:
                parameter.add_(torch.randn_like(parameter) * step)
    model.to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def save_lora(base: Path, folder: Path, **options) -> Path:
    """Save a LoRA with random factors, none of them zero; return ``folder``."""
    torch.manual_seed(5)
    config = LoraConfig(**{"r": 4, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, kind: str = "Lora", **options: Any) -> Path:
    """Save an adapter with a random change of every trainable number; return ``folder``."""
    torch.manual_seed(5)
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder
