"""One tool: a typed Python function with a docstring, its JSON schema, and the check of a call's arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, cast, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException
from typing_extensions import TypedDict  # before Python 3.12, pydantic accepts only this one

from skillweave.errors import UserError

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_NAMED = 3
"""At most this many mistakes in the arguments are named, because a longer message would not be read."""


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """``{"type": "function", "function": {...}}`` as chat templates take it, from the signature and the docstring.

    Raises :class:`UserError` if the function cannot be described to the model: it has no docstring, a parameter without
    a type or a description, ``*args``, ``**kwargs`` or positional-only parameters, or it is a coroutine.
    """
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        raise UserError(f"a tool must be a Python function, found {function!r:.60}")
    name = function.__name__
    if inspect.iscoroutinefunction(function):
        raise UserError(f"tool '{name}' is a coroutine: give a plain function, each call runs in a thread of its own")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _BY_NAME:
            raise UserError(f"tool '{name}': arguments come by name, write '{parameter}' as named parameters")
        if parameter.annotation is parameter.empty:
            raise UserError(
                f"tool '{name}': the parameter '{parameter.name}' has no type: write one, {parameter.name}: str"
            )
    try:
        return get_json_schema(function)
    except TypeHintParsingException as error:  # its own advice, to pass a schema, does not apply here
        raise UserError(
            f"tool '{name}' has a type that JSON does not have: {name}{inspect.signature(function)}. Use int, float, "
            "str, bool, None, Literal, Enum, list, dict, tuples of two or more, and unions of these"
        ) from error
    except (DocstringParsingException, NameError) as error:
        raise UserError(
            f"tool '{name}' needs a docstring that says what it does and has an 'Args:' block with a line for each "
            f"parameter, and types that are defined in its module: {error}"
        ) from error


def checker_of(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that converts the arguments of a call to those of ``function``.

    It is strict: ``"3"`` is not an int, and unknown arguments are refused. It raises ``ValueError`` with a message that
    names the arguments that are wrong, at most three of them.
    """
    hints = get_type_hints(function)
    fields: dict[str, Any] = {
        name: hints[name] if parameter.default is parameter.empty else NotRequired[hints[name]]
        for name, parameter in inspect.signature(function).parameters.items()
    }
    # The functional form of TypedDict allows any name; the fields of a pydantic model do not.
    shape = cast(Any, TypedDict)("Arguments", fields)
    shape.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    try:
        adapter = TypeAdapter(shape)
    except PydanticUserError as error:
        raise UserError(f"tool '{function.__name__}': pydantic cannot check its arguments: {error.message}") from error

    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            # Validated as JSON, which is what the model writes: a list can stand for a tuple, a text for a date.
            return adapter.validate_json(json.dumps(dict(arguments)))
        except ValidationError as problem:
            raise ValueError("; ".join(map(_message, problem.errors()[:_NAMED]))) from None
        except (TypeError, ValueError, RecursionError) as problem:
            raise ValueError(f"they are not JSON: {problem}") from None

    return check


def _message(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place else str(error["msg"])
