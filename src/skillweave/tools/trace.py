"""Read an expert's conversation with tools, in OpenAI's form: check it and split it into turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base.chat import Message
from skillweave.errors import UserError
from skillweave.tools.call import Call, Outcome
from skillweave.tools.turn import call_text, read_turn

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Step:
    """One turn of the expert: its text with its calls, and the results of the calls in their order."""

    text: str
    results: tuple[str, ...]


def read_trace(messages: Sequence[Message]) -> tuple[list[Message], list[Step]]:
    """The prompt and the expert's turns. The last turn, and only the last, has no calls.

    The prompt is the role and content of every message before the expert's first one. Raises :class:`UserError` that
    names the message and what is wrong with it.
    """
    for number, message in enumerate(messages, 1):
        if message.get("role") not in _ROLES:
            raise UserError(
                f"message {number}: the role is {message.get('role')!r:.60}, expected one of {', '.join(_ROLES)}"
            )
        _check_text(json.dumps(message, ensure_ascii=False, default=str), f"message {number}")
    start = next((at for at, message in enumerate(messages) if message["role"] in ("assistant", "tool")), None)
    if start is None:
        raise UserError("the trace has no assistant message: it must end with the assistant's answer")
    prompt: list[Message] = [
        {"role": message["role"], "content": _text(message, f"message {number}")}
        for number, message in enumerate(messages[:start], 1)
    ]
    if not prompt or prompt[-1]["role"] != "user":
        raise UserError(f"message {start + 1}: the expert's first message must follow one of the user, the prompt")
    steps: list[Step] = []
    at = start
    while at < len(messages):
        where = f"message {at + 1}"
        if messages[at]["role"] == "tool":
            raise UserError(f"{where}: a tool's result without a call that it answers")
        if messages[at]["role"] != "assistant":
            raise UserError(f"{where}: the role is '{messages[at]['role']}', expected the assistant's next turn")
        if steps and not steps[-1].results:
            raise UserError(
                f"{where}: the assistant's message before it makes no call, so it was the answer: end there"
            )
        text, ids = _turn(messages[at], where)
        results = _results(messages, at + 1, ids)
        steps.append(Step(text, results))
        at += 1 + len(results)
    if steps[-1].results:
        raise UserError("the trace ends with a tool's result: it must end with the assistant's answer")
    return prompt, steps


def _turn(message: Message, where: str) -> tuple[str, list[str | None]]:
    """The text of an assistant's turn, and the id of each of its calls (None: without an id)."""
    content = "" if message.get("content") is None else _text(message, where)
    given = message.get("tool_calls") or []
    if not isinstance(given, list):
        raise UserError(f"{where}: 'tool_calls' must be a list, found {given!r:.60}")
    text = content + "".join(call_text(_call(call, where)) for call in given)
    _check_text(text, where)  # again, now that the arguments are not escaped any more
    turn = read_turn(text)
    broken = next((call.text for call in turn.calls if isinstance(call, Outcome)), None)
    if broken is not None:
        raise UserError(f"{where}: {broken}")
    if turn.answer == "":
        raise UserError(f"{where}: the assistant says nothing and calls nothing")
    # Calls may also be written in the text; they come before the listed ones and have no ids.
    return text, [None] * (len(turn.calls) - len(given)) + [_id(call, "id", where) for call in given]


def _call(given: Any, where: str) -> Call:
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"{where}: a tool call needs a 'function' with a 'name', found {given!r:.60}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: the arguments of '{function['name']}' are not JSON ({error})") from error
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}: the arguments of '{function['name']}' must be an object, found {arguments!r:.60}")
    return Call(function["name"], arguments)


def _results(messages: Sequence[Message], start: int, ids: Sequence[str | None]) -> tuple[str, ...]:
    """The results that follow a turn, in the order of its calls, whose ids are ``ids``."""
    given = []
    for message in messages[start:]:
        if message["role"] != "tool":
            break
        given.append(message)
    if len(given) != len(ids):
        raise UserError(
            f"message {start}: the assistant makes {len(ids)} calls and {len(given)} results follow: "
            "each call needs one message of the role 'tool' after it"
        )
    texts = [_text(message, f"message {at}") for at, message in enumerate(given, start + 1)]
    named = [_id(message, "tool_call_id", f"message {at}") for at, message in enumerate(given, start + 1)]
    if None not in ids and None not in named:
        if len(set(ids)) < len(ids) or set(ids) != set(named):
            raise UserError(f"message {start}: its calls are {ids}, the results answer {named}: these must be the same")
        texts = [texts[named.index(one)] for one in ids]
    return tuple(texts)


def _text(message: Message, where: str) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise UserError(f"{where}: the {message['role']}'s 'content' must be a text, found {content!r:.60}")
    return content


def _check_text(text: str, where: str) -> None:
    """Raise :class:`UserError` for a lone surrogate: JSON allows this half of a character, but no tokenizer does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {text[error.start]!r} is not a whole character of Unicode: leave it out") from None


def _id(given: Mapping[str, Any], key: str, where: str) -> str | None:
    value = given.get(key)
    if not isinstance(value, str | None):
        raise UserError(f"{where}: '{key}' must be a text, found {value!r:.60}")
    return value
