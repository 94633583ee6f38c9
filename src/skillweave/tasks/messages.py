"""Chat messages and tools of a row, checked and converted to one form: OpenAI's, with texts as content.

What could not be shown to a model is an error that names the line: an image, an unknown role, an unreadable call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from skillweave.errors import UserError, nearest
from skillweave.files.parse_json import parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")
_OLD_ROLES = {"function": "tool", "human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}

# Keys that OpenAI's forms allow and that are not passed to chat templates here.
_REFUSED = {
    "function_call": "write the call as 'tool_calls': [{'type': 'function', 'function': {...}}]",
    "audio": "only text is trained on: remove such rows",
    "images": "only text is trained on: remove such rows",
}
SWITCHES = ("weight", "train", "training", "loss")
"""Keys that say whether a message is learnt, in the forms of several trainers. Here the last message is the answer that
is learnt, and it always is; the keys of the messages before it do not matter."""
PREFIX = "prefix"
"""The key of an answer that is to be continued."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of an answer's thoughts; which of them a chat template writes differs from base to base."""


def read_messages(value: Any, where: str, key: str, *, learnt: bool = True) -> list[dict[str, Any]]:
    """The messages in ``value`` (a list, or its JSON text), with contents as texts and arguments of calls as objects.

    ``learnt`` says whether an answer at their end is one to learn, and not the rejected one of a pair.

    Raises :class:`UserError` that names ``where`` and ``key`` for everything that could not be shown to a model.
    """
    value = parsed(value, where, key)
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: '{key}' must be a list of messages, found {value!r:.60}")
    messages = [_message(message, f"{where}: {key}, message {number}") for number, message in enumerate(value, 1)]
    if messages[-1]["role"] == "assistant":
        _check_answer(value[-1], f"{where}: {key}, message {len(value)}", learnt=learnt)
    return messages


def _check_answer(message: Mapping[str, Any], where: str, *, learnt: bool) -> None:
    """Raise :class:`UserError` for an answer that is not to be learnt as every other one is, or has no end."""
    for switch in SWITCHES if learnt else ():
        value = message.get(switch)
        if value is False or value == 0 or (switch == "weight" and value not in (None, 1)):
            raise UserError(
                f"{where} has '{switch}', which is not supported: all answers count equally in training: remove the "
                "key, or the row"
            )
    if message.get(PREFIX) is True:
        raise UserError(
            f"{where} has '{PREFIX}', which is not supported: an answer is learnt with its end: complete it, or remove "
            "the row"
        )


def read_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """The tools in ``value`` (a list of OpenAI's tool objects or bare functions, or its JSON text), in OpenAI's form.

    Each is ``{"type": "function", "function": {"name": ..., ...}}``. Raises :class:`UserError`.
    """
    value = parsed(value, where, "tools")
    if not isinstance(value, list):
        hint = "; put it in a list: [{...}]" if isinstance(value, Mapping) else ""
        raise UserError(f"{where}: 'tools' must be a list of tools, found {value!r:.60}{hint}")
    tools = [_tool(tool, f"{where}: tools, tool {number}") for number, tool in enumerate(value, 1)]
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: 'tools' has two tools called '{twice}': rename or remove one of them")
    return tools


def parsed(value: Any, where: str, key: str) -> Any:
    """``value``; if it is a text, the value of its JSON. Many data sets store lists and objects that way."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, f"{where}: '{key}'")
    except UserError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            reason = error.__cause__.msg
            raise UserError(f"{where}: '{key}' is a text that holds no JSON ({reason}), found {value!r:.60}") from error
        raise


def text_of(content: Any, where: str) -> str:
    """The text of a message's content: the content itself, or its parts of type ``text``, joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"{where} must have a text as 'content', found {content!r:.60}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind == "text" and isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise UserError(
                f"{where} has a part of content that is not text ({kind or part!r:.60}): only text is trained on, "
                "remove such rows"
            )
    return "".join(texts)


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        hint = (
            " (messages with 'from' and 'value' belong in a list called 'conversations')"
            if _is_sharegpt(message)
            else ""
        )
        raise UserError(f"{where} must have the texts 'role' and 'content', found {message!r:.60}{hint}")
    fields = {key: value for key, value in message.items() if value is not None}
    role = fields["role"]
    if role not in ROLES:
        hint = f"write '{_OLD_ROLES[role]}'" if role in _OLD_ROLES else nearest(role, ROLES)
        raise UserError(f"{where} has the unknown role {role!r:.60}; {hint}")
    for key, hint in _REFUSED.items():
        if fields.get(key):
            raise UserError(f"{where} has '{key}', which is not supported: {hint}")
    calls = fields.pop("tool_calls", None)
    calls = parsed(calls, where, "tool_calls") if calls is not None else []
    if not isinstance(calls, list):
        raise UserError(f"{where}: 'tool_calls' must be a list, found {calls!r:.60}")
    if calls and role != "assistant":
        raise UserError(f"{where} has 'tool_calls', which only the assistant can have, and the role is '{role}'")
    if "content" not in fields and not calls:
        raise UserError(f"{where} must have the texts 'role' and 'content', found {sorted(fields)}")
    checked = {key: value for key, value in fields.items() if key not in (*_REFUSED, *SWITCHES, PREFIX)}
    checked["content"] = text_of(fields.get("content", ""), where)
    for key in THOUGHTS if role == "assistant" else ():
        thoughts = checked.get(key, "")
        if thoughts is True or (not thoughts and not isinstance(thoughts, str)):
            del checked[key]  # whether the model was asked to think, or no thoughts at all
        elif not isinstance(thoughts, str):
            raise UserError(f"{where}: '{key}' must be a text, found {thoughts!r:.60}")
    if calls:
        checked["tool_calls"] = [_call(call, f"{where}, call {number}") for number, call in enumerate(calls, 1)]
    return checked


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UserError(f"{where} needs a 'function' with a 'name', found {call!r:.60}")
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else parsed(arguments, where, "arguments")
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}: 'arguments' must be an object (or its JSON text), found {arguments!r:.60}")
    id = {"id": call["id"]} if call.get("id") is not None else {}
    return {**id, "type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}


def _tool(tool: Any, where: str) -> dict[str, Any]:
    tool = parsed(tool, where, "tools")
    if isinstance(tool, Mapping) and tool.get("type", "function") != "function":
        raise UserError(f"{where} is of the type {tool['type']!r:.60}; only functions can be called")
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UserError(f"{where} needs a 'function' with a 'name', found {tool!r:.60}")
    if not isinstance(function.get("parameters"), Mapping | None):
        raise UserError(
            f"{where}: 'parameters' must be an object (a JSON schema), found {function['parameters']!r:.60}"
        )
    return {"type": "function", "function": {key: value for key, value in function.items() if key != "type"}}


def _is_sharegpt(message: Any) -> bool:
    return isinstance(message, Mapping) and "from" in message and "value" in message
