"""The bases of the benchmark: SmolLM2, and micro models of three families that are trained from nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from skillweave.artefact import atomic_folder
from skillweave.base import answer_ids, prompt_ids
from skillweave.base.batching import padded
from skillweave.files.hashes import digest
from skillweave.files.lock import claim
from skillweave.micro import micro_tokenizer
from skillweave.progress import bar
from skillweave.tasks import load_task

SMALL = "bundled:smollm2"
HIDDEN, LAYERS, HEADS, CONTEXT = 192, 3, 6, 64
RATE, BATCH = 2e-3, 32
FAMILIES = ("llama", "gpt2", "qwen3")


def scratch_model(family: str, vocabulary: int) -> PreTrainedModel:
    """Return a random model of about a million parameters, float32.

    GPT-2 stores its weights as (in, out), has biases, and one layer for q, k and v. Qwen3 has norms of q and k, and a
    head of its own.
    """
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "initializer_range": 0.05,
    }
    if family == "gpt2":
        shape = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_inner": 2 * HIDDEN}
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2LMHeadModel(GPT2Config(**common, **shape, **dropouts))
    shape = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": CONTEXT,
    }
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common, **shape, head_dim=HIDDEN // HEADS, tie_word_embeddings=False))
    return LlamaForCausalLM(LlamaConfig(**common, **shape, tie_word_embeddings=True))


def scratch_base(family: str, tasks: Sequence[dict[str, Any]], steps: int, folder: Path) -> Path:
    """Return the folder of a micro model that has seen a little of every task; it is trained once.

    ``steps`` decides how little: enough to know letters and the form of an answer, too few to be right often. Its
    examples are drawn with another seed than those of the fine-tunes.
    """
    target = folder / f"{family}-{digest([list(tasks), steps])}"
    with claim(target, waiting=f"another process trains the {family} base; waiting for it"):
        if not target.is_dir():
            tokenizer = micro_tokenizer()
            pairs = [pair for task in tasks for pair in load_task({**task, "seed": 1000}).pairs("train")]
            rows = [(prompt_ids(tokenizer, prompt), answer_ids(tokenizer, answer)) for prompt, answer in pairs]
            model = scratch_model(family, len(tokenizer))
            _train(model, rows, steps, f"{family} base: training")
            with atomic_folder(target) as written:
                model.save_pretrained(written)
                tokenizer.save_pretrained(written)
    return target


def _train(model: PreTrainedModel, rows: list[tuple[list[int], list[int]]], steps: int, label: str) -> None:
    """Train all weights on the answers, in place; the rate falls to 0 in a cosine."""
    random = Random(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    model.train()
    with bar(label, steps) as advance:
        for step in range(steps):
            for group in optimiser.param_groups:
                share = step / steps
                group["lr"] = RATE * min(20 * share, 0.5 * (1 + math.cos(math.pi * share)))
            loss = model(**padded(random.sample(rows, min(BATCH, len(rows))), 0)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            advance(1, f"loss {loss.item():.3f}")
    model.eval()
