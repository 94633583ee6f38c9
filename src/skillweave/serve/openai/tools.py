"""The tools and the form of answers that a request asks for, as the rest of the library knows them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.engine.grammar import MOST_CALLS, CallForm, JsonForm
from skillweave.errors import UserError, nearest, shown_value
from skillweave.serve.errors import invalid, unsupported
from skillweave.serve.openai.parameters import only_keys
from skillweave.serve.service import RequestLimits

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}

Form = JsonForm | CallForm


@dataclass(frozen=True)
class WantedTools:
    """The tools that a request brings, and how they are to be used.

    - ``described``: those that the model is told of, in OpenAI's form; with the choice "none" there are none
    - ``form``: the form of the answer, or None for any text
    - ``forced``: whether the answer must be a call
    """

    described: tuple[Mapping[str, Any], ...] = ()
    form: Form | None = None
    forced: bool = False


def read_tools(tools: Any, limits: RequestLimits, *, flat: bool = False) -> list[dict[str, Any]]:
    """Return tools in OpenAI's form for chat completions, all keys present. ``flat``: they come as for responses.

    Raises :class:`ApiError` for one that is no function, or whose description cannot be used, and for too many.
    """
    if not isinstance(tools, list):
        raise invalid("tools", f"expected a list, not {shown_value(tools)}", "invalid_type")
    if len(tools) > limits.max_tools:
        raise invalid("tools", f"there are {len(tools)}, and the most is {limits.max_tools}")
    if (size := len(json.dumps(tools))) > limits.max_tool_bytes:
        raise invalid("tools", f"they take {size:,} bytes, and the most is {limits.max_tool_bytes:,}")
    read: list[dict[str, Any]] = []
    for at, tool in enumerate(tools):
        where = f"tools.{at}"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = shown_value(tool.get("type") if isinstance(tool, dict) else tool)
            raise unsupported(where, f"only tools of the type 'function' can be used, not {kind}: the client runs them")
        if flat:
            function = only_keys(tool, {"type", "name", "description", "parameters", "strict"}, where)
        else:
            outer = only_keys(tool, {"type", "function"}, where)
            where = f"{where}.function"
            function = only_keys(outer.get("function"), {"name", "description", "parameters", "strict"}, where)
        read.append({"type": "function", "function": _function(function, where)})
    names = [tool["function"]["name"] for tool in read]
    if twice := [name for name in names if names.count(name) > 1]:
        raise invalid("tools", f"two tools have the name '{twice[0]}'")
    return read


def _function(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, description = function.get("name"), function.get("description", "")
    parameters, strict = function.get("parameters", _NO_ARGUMENTS), function.get("strict", False)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(f"{where}.name", "expected 1 to 64 letters, digits, _ or -")
    if not isinstance(description, str):
        raise invalid(f"{where}.description", "expected a text", "invalid_type")
    if not isinstance(strict, bool):
        raise invalid(f"{where}.strict", "expected true or false", "invalid_type")
    if not isinstance(parameters, dict):
        raise invalid(f"{where}.parameters", "expected a JSON schema of an object", "invalid_type")
    properties = parameters.get("properties", {})
    if parameters.get("type", "object") != "object" or not isinstance(properties, dict):
        raise invalid(f"{where}.parameters", "expected a JSON schema of the type 'object', with properties")
    for key, about in properties.items():
        kind = about.get("type", "any") if isinstance(about, dict) else None
        kinds = kind if isinstance(kind, list) else [kind]
        if not all(isinstance(one, str) for one in kinds) or not isinstance(about.get("enum", []), list):
            raise invalid(f"{where}.parameters.properties.{key[:100]}", "expected a JSON schema")
    schema = {"type": "object", "properties": {}, **parameters}
    return {"name": name, "description": description, "parameters": schema, "strict": strict}


def tool_use(
    tools: Sequence[Mapping[str, Any]],
    choice: Any,
    answer: Mapping[str, Any] | None,
    *,
    parallel: bool = True,
    format_where: str = "response_format",
) -> WantedTools:
    """Return how the tools of a request are used. It compiles grammars: call it in a thread.

    - ``choice``: "auto", "none", "required", the name of a tool as ``{"name": ...}``, or None for "auto"
    - ``answer``: the JSON schema of the answer, or None
    - ``parallel``: whether one turn may have several calls

    Raises :class:`ApiError` for a choice without its tool, and for a schema that no grammar can follow.
    """
    names = [tool["function"]["name"] for tool in tools]
    named = choice["name"] if isinstance(choice, dict) else None
    if named is not None and named not in names:
        raise invalid("tool_choice", f"there is no tool '{str(named)[:100]}'; {nearest(str(named), names)}")
    if choice == "required" and not tools:
        raise invalid("tool_choice", "a call is required, but there are no tools")
    forced = named is not None or choice == "required"
    if not tools or choice == "none":
        return WantedTools(form=_json_form(answer, format_where))
    strict = any(tool["function"]["strict"] for tool in tools)
    if not (forced or strict or answer is not None or not parallel):
        return WantedTools(tuple(tools))
    chosen = [tool["function"] for tool in tools if named in (None, tool["function"]["name"])]
    # A tool that is not strict may have arguments of any kind, unless its call is forced.
    schemas = [(one["name"], one["parameters"] if forced or one["strict"] else {"type": "object"}) for one in chosen]
    if not forced:
        _json_form(answer, format_where)  # its error names the right parameter
    most = 1 if named is not None or not parallel else MOST_CALLS
    try:
        form = CallForm(tuple(schemas), forced=forced, most=most, answer=None if forced else answer)
    except UserError as error:
        raise invalid("tools", str(error), "invalid_schema") from None
    return WantedTools(tuple(tools), form, forced)


def _json_form(schema: Mapping[str, Any] | None, where: str) -> JsonForm | None:
    try:
        return None if schema is None else JsonForm(schema)
    except UserError as error:
        raise invalid(where, str(error), "invalid_schema") from None


def read_choice(choice: Any) -> Any:
    """Return a tool choice as :func:`tool_use` takes it. Raises :class:`ApiError` for another one."""
    if choice is None or choice in ("auto", "none", "required"):
        return choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        function = choice["function"] if isinstance(choice.get("function"), dict) else choice
        if isinstance(function.get("name"), str):
            return {"name": function["name"]}
        raise invalid("tool_choice.name", "expected the name of a tool", "missing_required_parameter")
    if kind is not None:
        raise unsupported(
            "tool_choice", f"choices of the type {shown_value(kind)} are not supported: name one function"
        )
    raise invalid("tool_choice", f"expected 'auto', 'none', 'required' or a function, not {shown_value(choice)}")


def read_format(form: Any, limits: RequestLimits, where: str, *, flat: bool = False) -> dict[str, Any] | None:
    """Return the JSON schema that an answer must follow, or None for any text. ``flat``: as responses give it.

    Raises :class:`ApiError`.
    """
    given = only_keys(
        {} if form is None else form, {"type", "json_schema", "name", "schema", "strict", "description"}, where
    )
    kind = given.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise unsupported(f"{where}.type", f"expected 'text', 'json_object' or 'json_schema', not {shown_value(kind)}")
    if flat:
        inner = given
    else:
        inner = only_keys(given.get("json_schema"), {"name", "schema", "strict", "description"}, f"{where}.json_schema")
        where = f"{where}.json_schema"
    schema = inner.get("schema")
    if not isinstance(schema, dict):
        raise invalid(f"{where}.schema", "expected a JSON schema", "missing_required_parameter")
    if (size := len(json.dumps(schema))) > limits.max_tool_bytes:
        raise invalid(f"{where}.schema", f"it takes {size:,} bytes, and the most is {limits.max_tool_bytes:,}")
    return schema
