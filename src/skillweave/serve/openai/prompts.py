"""Prompts of a request as token ids: its messages and tools as the chat template of the model can write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from skillweave.base.chat import Prompt, prompt_ids, rendered
from skillweave.base.template import has_template
from skillweave.errors import UserError
from skillweave.serve.errors import invalid, too_long
from skillweave.tools.call import Call
from skillweave.tools.call_format import tools_instruction
from skillweave.tools.turn import call_text

_PROBE = "a-text-of-this-message"
_TOOL = {
    "type": "function",
    "function": {"name": "probe_tool", "description": "", "parameters": {"type": "object", "properties": {}}},
}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "probe_tool", "arguments": "{}"}}
_ASKED = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class _Writes:
    """What a chat template writes by itself: descriptions of tools, calls in messages, and results of tools."""

    tools: bool
    calls: bool
    results: bool


_known: WeakKeyDictionary[Any, tuple[str, _Writes]] = WeakKeyDictionary()


def with_tools(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return messages and tools as a prompt that the tokenizer's chat template can write.

    What the template does not write is put into the text of messages, as
    :class:`~skillweave.tools.call_format.CallFormat` does: tools are described by the system message, calls stand in
    ``<tool_call>``, and results come as messages of the user in ``<tool_response>``.

    Raises :class:`ApiError` for tools if there is no chat template.
    """
    has_calls = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
    if not tools and not has_calls:
        return list(messages)
    if not has_template(tokenizer):
        raise invalid(
            "tools", "tools need a model with a chat template, and this one has none", "unsupported_parameter"
        )
    writes = _template_writes(tokenizer)
    shown = [_written(message, writes) for message in messages]
    if not writes.results:
        shown = _joined_results(shown)
    if not tools:
        return shown
    if writes.tools:
        return {"messages": shown, "tools": [_shown_tool(tool) for tool in tools]}
    system = [message["content"] for message in shown[:1] if message["role"] == "system"]
    described = {"role": "system", "content": "\n\n".join([*system, tools_instruction(tools)])}
    return [described, *shown[len(system) :]]


def chat_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], context: int | None
) -> list[int]:
    """Return the token ids of a conversation. Rendering may take long: call it in a thread.

    Raises :class:`ApiError` if they leave no room for an answer, and :class:`UserError` if the template refuses them.
    """
    return fitting(prompt_ids(tokenizer, with_tools(tokenizer, messages, tools)), context)


def fitting(ids: list[int], context: int | None) -> list[int]:
    """Return the ids of a prompt. Raises :class:`ApiError` if they leave no room for an answer."""
    if context is not None and len(ids) >= context:
        raise too_long(len(ids), context)
    return ids


def _template_writes(tokenizer: Any) -> _Writes:
    template = str(tokenizer.chat_template)
    known = _known.get(tokenizer)
    if known is None or known[0] != template:
        called = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        result = {"role": "tool", "tool_call_id": "call00001", "name": "probe_tool", "content": _PROBE}
        bare = {"role": "assistant", "content": _PROBE}
        calls = "probe_tool" in _try(tokenizer, [_ASKED, called])
        writes = _Writes(
            tools="probe_tool" in _try(tokenizer, [_ASKED], tools=[_TOOL]),
            calls=calls,
            results=_PROBE in _try(tokenizer, [_ASKED, called if calls else {**bare, "content": "!"}, result]),
        )
        known = _known[tokenizer] = template, writes
    return known[1]


def _try(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    with suppress(UserError):
        return rendered(tokenizer, messages, **options)
    return ""


def _written(message: Mapping[str, Any], writes: _Writes) -> dict[str, Any]:
    """Return a message whose calls the template writes: those that it does not write become a part of its text."""
    calls = message.get("tool_calls")
    if not calls or writes.calls:
        return dict(message)
    texts = [call_text(Call(call["function"]["name"], _arguments(call["function"]["arguments"]))) for call in calls]
    text = "\n".join([*filter(None, [message.get("content")]), *texts])
    return {"role": "assistant", "content": text}


def _arguments(text: str) -> Mapping[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(text or "{}")
        if isinstance(value, dict):
            return value
    raise invalid("messages", "the arguments of a tool call must be a JSON object as a text")


def _joined_results(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in which the results that follow each other are one message of the user."""
    joined: list[dict[str, Any]] = []
    in_results = False
    for message in messages:
        if message["role"] != "tool":
            joined.append(dict(message))
        else:
            text = f"<tool_response>{message['content']}</tool_response>"
            if in_results:
                joined[-1]["content"] += f"\n{text}"
            else:
                joined.append({"role": "user", "content": text})
        in_results = message["role"] == "tool"
    return joined


def _shown_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool without the key ``strict``, which is for the server and not for the model."""
    return {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
