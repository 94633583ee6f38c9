"""A model's control tokens, and the one of them that ends its turn."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError

SAID = "the-assistant-wrote-this"
"""A text whose place in a rendering shows what the template writes around what the assistant said."""


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds every text that is a control token; of two that begin alike the longer."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    longest_first = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def turn_end(tokenizer: Any) -> str:
    """The token that ends a turn: the one that the chat template writes behind what the assistant said.

    It need not be the end of all text: Gemma writes ``<end_of_turn>``, while its ``eos_token`` is ``<eos>``. That is
    what comes where the template writes no token there, or there is no template.
    """
    said = ""
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": SAID}]
        with suppress(TemplateError):  # whoever renders a real conversation is told
            said = tokenizer.apply_chat_template(messages, tokenize=False)
    found = control_tokens(tokenizer).match(said.partition(SAID)[2].lstrip())
    return found[0] if found else tokenizer.eos_token
