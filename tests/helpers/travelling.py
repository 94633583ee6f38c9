"""Tiny bases and fine-tunes whose vocabulary, chat templates and end tokens differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

LETTERS = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127))]
"""98 tokens, one for each character."""
TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '|' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def tokenizer(*added: str, template: str | dict[str, str] | None = None, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, with the special tokens ``added`` after them."""
    letters = Tokenizer(models.WordLevel({one: at for at, one in enumerate(LETTERS)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    names = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", **special}
    made = PreTrainedTokenizerFast(tokenizer_object=letters, **names)
    if added:
        made.add_special_tokens({"additional_special_tokens": list(added)})
    if template is not None:
        made.chat_template = template
    return made


def model(rows: int = 112, *, tie: bool = False, bias: bool = False, seed: int = 0) -> Any:
    """A random model with ``rows`` token rows. With ``bias``, its head has a bias."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": rows, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": tie, "pad_token_id": 0,
        "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.3,
    }  # fmt: skip
    return (PhiForCausalLM(PhiConfig(**shape)) if bias else LlamaForCausalLM(LlamaConfig(**shape))).eval()


@torch.no_grad()
def tuned(base: Any, rows: int | None = None, *, seed: int = 1, vocabulary: bool = False) -> Any:
    """Fine-tune ``base`` in place: a low-rank change of each matrix, a resized vocabulary, and with ``vocabulary``
    a change of the rows that both share."""
    source = torch.Generator().manual_seed(seed)
    for name, weight in base.named_parameters():
        if ".layers." in name and weight.dim() == 2:
            change = torch.randn(len(weight), 2, generator=source) @ torch.randn(2, weight.shape[1], generator=source)
            weight += 0.2 * weight.norm() * change / change.norm()
    if rows is not None:
        before = base.get_input_embeddings().weight.shape[0]
        torch.manual_seed(seed)
        base.resize_token_embeddings(rows, mean_resizing=False)
        for weight in {id(w): w for w in vocabulary_of(base)}.values():
            weight[before:] = torch.randn(weight[before:].shape, generator=source) * 0.3
    if vocabulary:
        for weight in {id(w): w for w in vocabulary_of(base)}.values():
            weight += 0.05 * torch.randn(weight.shape, generator=source)
    return base


def vocabulary_of(base: Any) -> list[torch.Tensor]:
    """The embedding, the head and the head's bias."""
    head = base.get_output_embeddings()
    found = [base.get_input_embeddings().weight, head.weight]
    return [*found, head.bias] if getattr(head, "bias", None) is not None else found


def save(folder: Path, made: Any, speaks: PreTrainedTokenizerFast, ends: int | list[int] = 1) -> Path:
    """Save a model and its tokenizer as a Hugging Face folder; return ``folder``."""
    made.generation_config.eos_token_id = ends
    made.save_pretrained(folder)
    speaks.save_pretrained(folder)
    return folder
