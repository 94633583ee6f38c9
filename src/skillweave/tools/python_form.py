"""Read calls that are written as Python: ``[search(query="x")]``, as Llama 3.2 and 4, LFM2 and Gemma write them."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from skillweave.tools.call import Call
from skillweave.tools.forms import Schemas, Unreadable
from skillweave.tools.source import parse

LONGEST = 20_000
"""Most characters of a text that is read as calls in Python."""

BEGINS = re.compile(r"\s*+\[?\s*+[A-Za-z_][\w.]*+\(")
_WORDS = {"true": True, "false": False, "null": None}


def python_calls(text: str, tools: Schemas) -> list[Call]:
    """Return the calls of a text that is nothing else: one on each line, in a list, or in ``print(...)``.

    The values are literals; ``true``, ``false`` and ``null`` are read as well. Values without a name belong to the
    parameters of the tool in their order. Raises :class:`Unreadable` for any other text.
    """
    if len(text) > LONGEST or not BEGINS.match(text):
        raise Unreadable("it is not a call in Python")
    try:
        body = parse(text.strip()).body
        return [_call(node, tools) for statement in body for node in _nodes(statement)]
    except (SyntaxError, ValueError, RecursionError) as problem:
        if isinstance(problem, Unreadable):
            raise
        raise Unreadable("it is not a call in Python") from None


def _nodes(statement: ast.stmt) -> list[ast.expr]:
    if not isinstance(statement, ast.Expr):
        raise Unreadable("it is Python, but no call alone")
    value = statement.value
    return value.elts if isinstance(value, ast.List | ast.Tuple) else [value]


def _call(node: ast.expr, tools: Schemas) -> Call:
    if not isinstance(node, ast.Call):
        raise Unreadable("it is Python, but no call alone")
    name = ast.unparse(node.func)
    if name == "print" and len(node.args) == 1 and not node.keywords and isinstance(node.args[0], ast.Call):
        return _call(node.args[0], tools)  # Gemma's tool_code
    if not re.fullmatch(r"[\w.]{1,200}", name):
        raise Unreadable("it is Python, but no call of a name")
    known = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    names = list(known.get(name, {}).get("properties") or {})[: len(node.args)]
    if len(names) < len(node.args):
        raise Unreadable("it has values without a name, write name=value")
    arguments = dict(zip(names, map(_value, node.args), strict=True))
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise Unreadable(f"the argument {keyword.arg or '**'!r:.42} appears twice or has no name")
        arguments[keyword.arg] = _value(keyword.value)
    return Call(name, arguments)


def _value(node: ast.expr) -> Any:
    """Return the value of a literal that JSON can hold. Raises ``ValueError`` for anything else."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.Dict):
        keys = [_value(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise Unreadable("the keys of an object are different texts")
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise Unreadable("JSON cannot hold a value in it")
    json.dumps(value, ensure_ascii=False).encode()  # half a character
    return value
