"""The chat templates of model families, and tiny tokenizers and models with the control tokens of each family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CALLS = [
    {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"town": "Rome"}}},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a town.",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        },
    }
]


@dataclass(frozen=True)
class Family:
    """A chat template, and the control tokens of its tokenizer."""

    template: str
    end: str
    """the token that ends a turn"""
    eos: str
    """the tokenizer's ``eos_token``"""
    bos: str | None
    others: tuple[str, ...]
    """all other control tokens"""


def shipped(name: str) -> str:
    """Return a model family's template: TRL contains copies of them, to recognise the families."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

CHATML = """{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2 = """{% for message in messages %}{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- ' '  + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|eom_id|>")
_GEMMA = ("<end_of_turn>", "<eos>", "<bos>", ("<start_of_turn>",))
_LLAMA3 = ("<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>", _HEADERS)
_QWEN = ("<|im_end|>", "<|endoftext|>", None, ("<|im_start|>",))
_PHI3 = ("<|end|>", "<|endoftext|>", "<s>", ("<|user|>", "<|assistant|>", "<|system|>"))
_DEEPSEEK = (
    "<｜end▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜begin▁of▁sentence｜>",
    ("<｜User｜>", "<｜Assistant｜>"),
)
_GPT_OSS = (
    "<|return|>",
    "<|return|>",
    "<|startoftext|>",
    ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|call|>"),
)

FAMILIES = {
    "gemma": Family(shipped("gemma"), *_GEMMA),
    "gemma3": Family(shipped("gemma3"), *_GEMMA),
    "llama3": Family(shipped("llama3"), *_LLAMA3),
    "llama3.1": Family(shipped("llama3_1"), *_LLAMA3),
    "phi3": Family(shipped("phi3"), *_PHI3),
    "qwen2.5": Family(shipped("qwen2_5"), *_QWEN),
    "mistral": Family(MISTRAL, "</s>", "</s>", "<s>", ()),
    "chatml": Family(CHATML, "<|im_end|>", "<|im_end|>", None, ("<|im_start|>",)),
}
"""The families that all tests run on."""

MORE = {
    "llama2": Family(LLAMA2, "</s>", "</s>", "<s>", ()),
    "qwen3": Family(shipped("qwen3"), *_QWEN),
    "deepseek-v3": Family(shipped("deepseekv3"), *_DEEPSEEK),
    "gpt-oss": Family(shipped("gptoss"), *_GPT_OSS),
    # GLM writes no end token after the assistant's text: the token of the next role follows directly.
    "glm4": Family(
        shipped("glm4moe"), "<|endoftext|>", "<|endoftext|>", None, ("<|user|>", "<|assistant|>", "[gMASK]")
    ),
}
"""The families whose end of a turn is tested, and nothing else."""


def family_tokenizer(family: Family, *, special: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each character and each control token; 0 is the pad, 1 the end token.

    With ``special=False``, the control tokens of turns are added tokens that are not marked special, as in some
    fine-tunes.
    """
    first = list(dict.fromkeys(filter(None, ["<pad>", family.eos, family.bos])))
    turns = [token for token in (family.end, *family.others) if token not in first]
    vocabulary = [*first, *turns, *map(chr, range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({token: at for at, token in enumerate(vocabulary)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token=family.eos,
        bos_token=family.bos,
        additional_special_tokens=turns if special else [],
    )
    if not special:
        fast.add_tokens(turns)
    fast.chat_template = family.template
    return fast


def micro_llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """Return a random model for such a tokenizer. Its configs name ``eos_token`` as the only end token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=320,
        pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def teach(model: LlamaForCausalLM, rows: list[dict[str, list[int]]], steps: int, rate: float = 3e-3) -> None:
    """Train on rows (``input_ids``, ``labels``) one by one, without any code of skillweave."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        for row in rows:
            ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
            (model(input_ids=ids, labels=labels).loss / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
