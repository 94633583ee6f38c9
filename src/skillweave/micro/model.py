"""A micro Llama: grouped key-value heads and tied embeddings, like SmolLM2 in small."""

from __future__ import annotations

import torch
from pydantic import Field
from transformers import LlamaConfig, LlamaForCausalLM

from skillweave.config import Config
from skillweave.micro.tokenizer import VOCABULARY


class MicroShape(Config):
    """The sizes of a micro model; as it stands about 0.1M parameters."""

    hidden: int = Field(default=64, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    kv_heads: int = Field(default=2, ge=1)
    intermediate: int = Field(default=128, ge=1)
    context: int = Field(default=256, ge=1, description="tokens, prompt and answer together")
    tie: bool = Field(default=True, description="the output head is the embedding")


def micro_model(shape: MicroShape, seed: int, words: int = 0) -> LlamaForCausalLM:
    """A random model (float32, eval mode) for the tokenizer :func:`micro_tokenizer` makes, with those words."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY) + words,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tie,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()
