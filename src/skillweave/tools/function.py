"""One tool: a typed Python function with a docstring, the schema made from it, and its arguments checked by it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, cast, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from skillweave.errors import UserError

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_NAMED = 3
"""So many mistakes in the arguments are told; a call with more is read by nobody."""


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """``{"type": "function", "function": {...}}`` as chat templates take it, from the signature and the docstring.

    Raises :class:`UserError` where the model could not be told how to call the function: no docstring, a parameter
    without a type or a description, ``*args``, ``**kwargs``, positional-only parameters; and for a coroutine.
    """
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

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
    except TypeHintParsingException as error:  # without its advice: no schema can be given here
        raise UserError(
            f"tool '{name}' has a type that JSON has not: {name}{inspect.signature(function)}. There are int, float, "
            "str, bool, None, Literal, Enum, list, dict, tuples of two or more, and unions of these"
        ) from error
    except (DocstringParsingException, NameError) as error:
        raise UserError(
            f"tool '{name}' needs a docstring that says what it does and has an 'Args:' block with a line for each "
            f"parameter, and types that are known where it stands: {error}"
        ) from error


def checker_of(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What turns the arguments of a call into the function's own, strictly: ``"3"`` is no int, and none is left over.

    The result raises ``ValueError`` whose message names the arguments that are wrong, three at most.
    """
    hints = get_type_hints(function)
    fields: dict[str, Any] = {
        name: hints[name] if parameter.default is parameter.empty else NotRequired[hints[name]]
        for name, parameter in inspect.signature(function).parameters.items()
    }
    # The functional form: parameters may have any name, which the fields of a pydantic model may not.
    shape = cast(Any, TypedDict)("Arguments", fields)
    shape.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    try:
        adapter = TypeAdapter(shape)
    except PydanticUserError as error:
        raise UserError(f"tool '{function.__name__}': pydantic cannot check its arguments: {error.message}") from error

    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            # By way of JSON, whose rules are the model's: a list may stand for a tuple, a text for a date.
            return adapter.validate_json(json.dumps(dict(arguments)))
        except ValidationError as problem:
            raise ValueError("; ".join(map(_told, problem.errors()[:_NAMED]))) from None
        except (TypeError, ValueError, RecursionError) as problem:
            raise ValueError(f"they are no JSON: {problem}") from None

    return check


def _told(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place else str(error["msg"])
