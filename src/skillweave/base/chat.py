"""Prompts as the model sees them: through its chat template, or plain where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from skillweave.errors import UserError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""A user's text, or messages ``{"role": ..., "content": ...}`` ending with the one to answer."""


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as chat messages; a text becomes one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """The text to be continued: chat template with the generation prompt; contents joined where there is none."""
    messages = as_messages(prompt)
    if getattr(tokenizer, "chat_template", None):
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise UserError(f"the base's chat template refuses messages of the roles {roles}: {error}") from error
    return "\n".join(str(message["content"]) for message in messages)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of :func:`prompt_text`; special tokens are added only where no template wrote them."""
    plain = not getattr(tokenizer, "chat_template", None)
    return tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=plain)["input_ids"]


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer as the model should write it after :func:`prompt_ids`, end-of-text included."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
