"""Read a call in the forms that models are trained on: JSON objects, lists of them, and XML-like marks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from skillweave.tools.call import Call, Outcome
from skillweave.tools.lenient import read_json

Schemas = Sequence[Mapping[str, Any]]
"""Tools as ``Toolbox.schemas`` describes them."""

_NAMES = ("name", "function", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_BESIDE = {"type", "id", "index", "call_id", "tool_call_id"}
"""Keys that are not needed to run the call."""
_LABELS = {"description", "strict", "status"}
"""Keys that are not needed either if the call has arguments and they hold no object, which may be arguments."""

_PARAMETER = re.compile(r"\s*+<parameter=([^<>\n]{1,200})>")
_KEY = re.compile(r"\s*+<arg_key>")
_BETWEEN = re.compile(r"</arg_key>\s*+<arg_value>")


class Unreadable(ValueError):
    """A call cannot be read. The message is written for the model and says why."""


def malformed(what: object) -> Outcome:
    """The outcome of a call that could not be read."""
    return Outcome(f"malformed call: {what}", "malformed")


def names_of(tools: Schemas) -> set[str]:
    """The names of the tools."""
    return {tool["function"]["name"] for tool in tools}


def calls_of(body: Any) -> list[Call | Outcome]:
    """The calls that a decoded JSON value stands for: an object is one call, a list any number of them.

    ============================================================  ==============================
    ``{"name": ..., "arguments": {...}}``                         Hermes, Qwen
    ``{"name": ..., "parameters": {...}}``                        Llama 3.1
    ``{"type": "function", "function": {"name": ..., ...}}``      OpenAI
    ``{"function": "name", ...}``, ``{"tool_name": ..., ...}``    DeepSeek's users, Cohere
    ``{"tool_calls": [...]}``, ``{"function_call": {...}}``       a whole message of OpenAI's
    ============================================================  ==============================

    The arguments may also be a JSON text that holds the object. null, an empty text and a missing key mean no
    arguments.
    """
    body = _inside(body)
    if not isinstance(body, list):
        return [_call_of(body)]
    return [_call_of(one) for one in body] or [malformed("the list holds no call")]


def _inside(body: Any) -> Any:
    """The calls of an object that has only a key for them; any other value as it is."""
    keys = set(body) if isinstance(body, dict) else set()
    return body[keys.pop()] if keys in ({"tool_calls"}, {"function_call"}) else body


def is_plain(body: Any) -> bool:
    """Whether a JSON value is a call in the form that models are told to use: a name, and an object of arguments."""
    return (
        isinstance(body, dict) and body.keys() <= {"name", "arguments"} and isinstance(body.get("arguments", {}), dict)
    )


def is_bare_call(body: Any, known: set[str]) -> bool:
    """Whether a JSON value without any mark is a call of a tool in ``known``.

    It must hold that name, the arguments, and nothing else, so that an answer that happens to be JSON stays an answer.
    """
    body = _inside(body)
    if isinstance(body, list):
        return bool(body) and all(is_bare_call(one, known) and isinstance(one, dict) for one in body)
    if not isinstance(body, dict):
        return False
    if body.get("type") == "function":
        body = {key: value for key, value in body.items() if key not in ("type", "id")}
        if set(body) == {"function"} and isinstance(body["function"], dict):
            body = body["function"]
    name = body.get("name", body.get("function"))
    given = next((body[key] for key in _ARGUMENTS if set(body) in ({"name", key}, {"function", key})), None)
    return isinstance(given, dict | str) and isinstance(name, str) and name in known


def _call_of(body: Any) -> Call | Outcome:
    outside: Mapping[str, Any] = {}
    if isinstance(body, dict) and isinstance(body.get("function"), dict):
        outside, body = {key: value for key, value in body.items() if key != "function"}, body["function"]
    if not isinstance(body, dict):
        return malformed('it needs a "name"')
    names = [body[key] for key in _NAMES if isinstance(body.get(key), str)]
    if not names:
        return malformed('it needs a "name"')
    if len(set(names)) > 1:
        return malformed(f"it has the names {names[0][:40]!r} and {names[1][:40]!r}")
    if other := [outside[key] for key in _NAMES if outside.get(key) not in (None, names[0])]:
        return malformed(f"it has the names {names[0][:40]!r} and {other[0]!r:.40}")
    try:
        given = _given(body)
    except Unreadable as problem:
        return malformed(problem)
    # Arguments in another place are an error: without them the tool would do something else.
    has_arguments = any(body.get(key) is not None for key in _ARGUMENTS)
    lost = [key for key in body if key not in {*_NAMES, *_ARGUMENTS} and _may_be_argument(body, key, has_arguments)]
    lost += [key for key in outside if key not in _NAMES and _may_be_argument(outside, key, has_arguments)]
    if lost:
        return malformed(f'{lost[0]!r:.40} is no key of a call, its arguments stand under "arguments"')
    return Call(names[0], given)


def _given(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call under either key. Raises :class:`Unreadable`."""
    first, second = _ARGUMENTS
    arguments = arguments_of(body.get(first), first)
    try:
        parameters = arguments_of(body.get(second), second)
    except Unreadable:  # a list of the parameters, or "none"
        if arguments:
            return arguments
        raise
    if not parameters or (first in body and _is_schema(parameters)):
        return arguments
    if arguments and arguments != parameters:
        raise Unreadable(f'its arguments stand both under "{first}" and under "{second}"')
    return parameters


def _may_be_argument(body: Mapping[str, Any], key: str, has_arguments: bool) -> bool:
    """Whether a key beside the call may hold what should be among its arguments."""
    is_label = key in _LABELS and has_arguments and not isinstance(body[key], dict)
    return not is_label and key not in _BESIDE and body[key] is not None


def _is_schema(parameters: Mapping[str, Any]) -> bool:
    """Whether these are not arguments but the tool's own description, which small models copy into a call."""
    return parameters.get("type") == "object"


def arguments_of(given: Any, key: str = _ARGUMENTS[0]) -> Mapping[str, Any]:
    """The arguments of a call, from an object or a JSON text that holds one.

    Raises :class:`Unreadable`, with the ``key`` under which they stand.
    """
    for _ in range(2):  # a JSON text inside a JSON text is read too
        if not isinstance(given, str) or not given.strip():
            break
        try:
            value, end, _ = read_json(given, len(given) - len(given.lstrip()))
        except (ValueError, RecursionError):
            raise Unreadable(f'"{key}" must be an object, or a JSON text that holds one') from None
        given = value if not given[end:].strip() else given
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    if not isinstance(given, dict):
        raise Unreadable(f'"{key}" must be an object')
    return given


def read_parameters(text: str, at: int, name: str, tools: Schemas) -> tuple[Call, int]:
    """Read a call of Qwen3-Coder, whose ``<parameter=key>value</parameter>`` begin at ``at``; return it and its end.

    A value is text. If the tool's schema asks for another type, the value is read as JSON if that is possible. Raises
    :class:`Unreadable`.
    """
    types = _types(name, tools)
    arguments: dict[str, Any] = {}
    while found := _PARAMETER.match(text, at):
        end = text.find("</parameter>", found.end())
        if end < 0:
            raise Unreadable("</parameter> is missing")
        _check_new(found[1], arguments)
        # The template puts one line break on each side of a value.
        arguments[found[1]] = _typed(text[found.end() : end].removeprefix("\n").removesuffix("\n"), types.get(found[1]))
        at = end + len("</parameter>")
    return Call(name, arguments), at


def read_pairs(text: str, at: int, name: str, tools: Schemas) -> tuple[Call, int]:
    """Read a call of GLM, ``<arg_key>key</arg_key><arg_value>value</arg_value>``, else as :func:`read_parameters`."""
    types = _types(name, tools)
    arguments: dict[str, Any] = {}
    while found := _KEY.match(text, at):
        key_end = text.find("</arg_key>", found.end())
        between = _BETWEEN.match(text, key_end) if key_end >= 0 else None
        end = text.find("</arg_value>", between.end()) if between else -1
        if between is None or end < 0:
            raise Unreadable("</arg_key> or </arg_value> is missing")
        key = text[found.end() : key_end].strip()
        _check_new(key, arguments)
        arguments[key] = _typed(text[between.end() : end], types.get(key))
        at = end + len("</arg_value>")
    return Call(name, arguments), at


def _check_new(key: str, arguments: Mapping[str, Any]) -> None:
    if key in arguments:
        raise Unreadable(f"the argument {key[:40]!r} appears twice")


def _types(name: str, tools: Schemas) -> dict[str, set[str]]:
    """The JSON types that each parameter of the tool may have."""
    function: Mapping[str, Any] = next((tool["function"] for tool in tools if tool["function"]["name"] == name), {})
    properties = function.get("parameters", {}).get("properties", {})
    return {key: _types_of(about) for key, about in properties.items()}


def _types_of(about: Mapping[str, Any]) -> set[str]:
    kinds = about.get("type", [])
    types = {kinds} if isinstance(kinds, str) else set(kinds)
    for other in (*about.get("anyOf", ()), *about.get("oneOf", ())):
        types |= _types_of(other)
    return types


def _typed(value: str, types: set[str] | None) -> Any:
    if not types or "string" in types:
        return value
    try:
        read, end, _ = read_json(value.strip(), 0)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(value.strip(), value)
    return read if end == len(value.strip()) else value
