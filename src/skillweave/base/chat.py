"""Prompts as the model sees them: through its chat template, or plain where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from skillweave.errors import UserError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Mapping[str, Any]
"""A user's text; or messages ``{"role": ..., "content": ...}`` ending with the one to answer; or, where the model is
told of tools, ``{"messages": [...], "tools": [...]}`` with the tools as OpenAI's chat API writes them."""
Answer = str | Message
"""What the assistant says: a text, or a message with ``tool_calls`` or ``reasoning_content``."""


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as chat messages; a text becomes one message of the user."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in (prompt["messages"] if isinstance(prompt, Mapping) else prompt)]


def tools_of(prompt: Prompt) -> list[Mapping[str, Any]]:
    """The tools that a prompt brings, in OpenAI's form; most bring none."""
    return list(prompt.get("tools") or []) if isinstance(prompt, Mapping) else []


def as_json(prompt: Prompt) -> str | list[dict[str, Any]] | dict[str, Any]:
    """The prompt as JSON holds it."""
    if isinstance(prompt, str):
        return prompt
    tools = tools_of(prompt)
    return {"messages": as_messages(prompt), "tools": tools} if tools else as_messages(prompt)


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """The text to be continued: chat template with the generation prompt; contents joined where there is none."""
    messages = as_messages(prompt)
    if getattr(tokenizer, "chat_template", None):
        return _templated(tokenizer, messages, tools_of(prompt), add_generation_prompt=True)
    if tools_of(prompt):
        raise UserError("the prompt has tools, and the base has no chat template that could tell the model of them")
    return "\n".join(str(message["content"]) for message in messages)


def _templated(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[Mapping[str, Any]], *, add_generation_prompt: bool
) -> str:
    try:
        return tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(f"the base's chat template refuses messages of the roles {roles}: {error}") from error


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of :func:`prompt_text`; special tokens are added only where no template wrote them."""
    plain = not getattr(tokenizer, "chat_template", None)
    return tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=plain)["input_ids"]


def answer_ids(tokenizer: Any, answer: Answer, prompt: Prompt | None = None) -> list[int]:
    """Token ids of an answer as the model should write it after :func:`prompt_ids`, end-of-text included.

    A message with more than a text is written by the chat template, which needs the ``prompt`` before it.
    """
    text = answer_text(tokenizer, answer, prompt)
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def answer_text(tokenizer: Any, answer: Answer, prompt: Prompt | None = None) -> str:
    """The text of :func:`answer_ids`, without the end."""
    if isinstance(answer, str):
        return answer
    if prompt is None or not getattr(tokenizer, "chat_template", None):
        raise UserError("an answer with tool calls is written by a chat template, and this base has none")
    start = prompt_text(tokenizer, prompt)
    whole = _templated(tokenizer, [*as_messages(prompt), dict(answer)], tools_of(prompt), add_generation_prompt=False)
    if not whole.startswith(start):
        raise UserError("the base's chat template writes the assistant's message with tool calls in another form")
    written, _, rest = whole[len(start) :].rpartition(tokenizer.eos_token)
    return written or rest
