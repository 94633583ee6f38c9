"""A micro Llama with grouped key-value heads and tied embeddings: a small copy of SmolLM2's architecture."""

from __future__ import annotations

import torch
from pydantic import Field
from transformers import LlamaConfig, LlamaForCausalLM

from skillweave.config import Config
from skillweave.micro.tokenizer import VOCABULARY


class MicroShape(Config):
    """The sizes of a micro model. The defaults give about 0.1M parameters."""

    hidden: int = Field(default=64, ge=1, description="the size of the hidden state")
    layers: int = Field(default=2, ge=1, description="the number of layers")
    heads: int = Field(default=4, ge=1, description="the number of query heads")
    kv_heads: int = Field(default=2, ge=1, description="the number of key-value heads")
    intermediate: int = Field(default=128, ge=1, description="the number of neurons in each MLP")
    context: int = Field(default=256, ge=1, description="the most tokens, prompt and answer together")
    tie: bool = Field(default=True, description="whether the output head shares the weights of the embedding")


def micro_model(shape: MicroShape, seed: int, words: int = 0) -> LlamaForCausalLM:
    """A random model (float32, eval mode) for the micro tokenizer with so many ``words``."""
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
