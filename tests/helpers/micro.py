"""The micro Llama that most tests run on, random and made in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

import skillweave.micro
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.micro import MicroShape, micro_tokenizer

__all__ = ["micro_model", "micro_tokenizer", "save_micro"]


def micro_model(
    *, seed: int = 1, hidden: int = 64, layers: int = 2, tie: bool = True, context: int = 256
) -> LlamaForCausalLM:
    """A random Llama with grouped key-value heads, a small copy of SmolLM2 (float32, about 0.1M parameters).

    The model of the default seed writes real answers. Models of other seeds answer many prompts with ``<end>`` alone,
    and comparing two empty answers proves little.
    """
    shape = MicroShape(hidden=hidden, layers=layers, intermediate=2 * hidden, context=context, tie=tie)
    return skillweave.micro.micro_model(shape, seed)


def save_micro(folder: Path, **options) -> Path:
    """A Hugging Face folder with model and tokenizer."""
    micro_model(**options).save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    return folder


def log_prob(model, tokenizer, prompt: str, answer: str) -> float:
    """Summed log-probability of an answer, one token at a time."""
    ids = prompt_ids(tokenizer, prompt)
    total = 0.0
    with torch.no_grad():
        for token in answer_ids(tokenizer, answer):
            total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
            ids = [*ids, token]
    return total
