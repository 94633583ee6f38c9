"""A model in which known neurons hold known facts: a fact says which token follows a key token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from skillweave.base.batching import padded

WORDS = 32
"""Vocabulary size and hidden size; the embedding of token t is the t-th unit vector.

Token 0 is padding, 1 to 7 fill prompts, 8 to 19 are keys, and the rest are values."""


@dataclass(frozen=True)
class PlantedFact:
    """Token ``value`` follows token ``key``, and only neuron ``neuron`` of layer ``layer`` knows it."""

    layer: int
    neuron: int
    key: int
    value: int


def planted_model(
    facts: Sequence[PlantedFact], *, layers: int = 3, neurons: int = 24, noise: float = 0.02, seed: int = 0
) -> LlamaForCausalLM:
    """A Llama whose attention adds nothing, and whose neurons are weak noise except those that hold ``facts``.

    It gives each fact's value a probability of about 0.6, so that gradients do not vanish, and every other token at
    most a few hundredths.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=WORDS,
            intermediate_size=neurons,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(WORDS))
        model.lm_head.weight.copy_(torch.eye(WORDS))
        model.lm_head.weight[:20] = 0  # only values are ever predicted
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            for linear in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                linear.weight.normal_(std=noise)
        for fact in facts:
            mlp = model.model.layers[fact.layer].mlp
            mlp.gate_proj.weight[fact.neuron, fact.key] = 1.0
            mlp.up_proj.weight[fact.neuron, fact.key] = 0.2
            mlp.down_proj.weight[fact.value, fact.neuron] = 0.16
    return model.eval()


def fact_batches(facts: Sequence[PlantedFact], size: int = 2) -> list[dict[str, torch.Tensor]]:
    """Padded batches that ask each fact once, after fillers of different lengths, with labels on the values only."""
    rows = [([1 + (i + j) % 7 for j in range(i % 3)] + [fact.key], [fact.value]) for i, fact in enumerate(facts)]
    return [padded(rows[at : at + size], pad=0) for at in range(0, len(rows), size)]
