"""The plain tokenizer of micro models: one token a character."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_FIRST = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
_CHARACTERS = [*map(chr, range(32, 127)), "\n"]

VOCABULARY = (*_FIRST, *_CHARACTERS, "<tool>")
"""All tokens by id. New ones go to the end, so that older micro models keep their meaning."""


def micro_tokenizer(chat_template: str | None = CHAT_TEMPLATE, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character and the newline, and one for each role; the rest reads as ``?``.

    ``<pad>`` is 0, ``<end>`` is 1. In a chat a message is its role's token, its characters and ``<end>``. Each of
    ``words`` is one token more, wherever it stands in a text, after all the others.
    """
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=[*_FIRST[2:], "<tool>"],
    )
    fast.add_tokens(list(words))
    fast.chat_template = chat_template
    return fast
