"""The tokenizer of micro models: one token per character."""

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
"""All tokens by id. New tokens are added at the end, so that older micro models stay valid."""


def micro_tokenizer(chat_template: str | None = CHAT_TEMPLATE, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per printable ASCII character, one for the newline and one per role.

    - Any other character becomes ``?``. ``<pad>`` is 0, ``<end>`` is 1.
    - In a chat, a message is the token of its role, its characters and ``<end>``.
    - Each of ``words`` is one more token, wherever it occurs in a text; their ids follow all others.
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
