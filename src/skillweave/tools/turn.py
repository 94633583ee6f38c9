"""One turn of a model as text: the calls in it, or the answer that it is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from skillweave.tools.call import Call, Outcome

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_MARK = re.compile(f"{OPEN}|{CLOSE}")

# Not strict: small models write code with its line breaks as they are, where JSON asks for \n.
_JSON = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Turn:
    """What a model wrote until its end token.

    ``calls``: in the order in which they stand; an :class:`Outcome` with the fault "malformed" stands where one could
    not be read. ``answer``: the text of a turn without calls, else None.
    """

    text: str
    calls: tuple[Call | Outcome, ...]
    answer: str | None


def call_text(call: Call) -> str:
    """The call as a model writes it: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``."""
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"{OPEN}{body}{CLOSE}"


def read_turn(text: str) -> Turn:
    """Find the calls in a turn. Never raises."""
    calls: list[Call | Outcome] = []
    at = 0
    while (start := text.find(OPEN, at)) >= 0:
        call, at = _read_call(text, start + len(OPEN))
        calls.append(call)
    if not calls and CLOSE in text:
        calls.append(_malformed(f"{CLOSE} without {OPEN}"))
    return Turn(text, tuple(calls), None if calls else text.strip())


def _read_call(text: str, start: int) -> tuple[Call | Outcome, int]:
    """The call whose JSON begins at ``start``, and where to read on."""
    start = _behind_space(text, start)
    # The JSON itself says where it ends: a text in it may hold the mark of the end.
    try:
        body, end = _JSON.raw_decode(text, start)
    except (ValueError, RecursionError) as problem:
        reason = getattr(problem, "msg", "it cannot be read")
        return _malformed(f"no valid JSON ({reason})"), _after(text, start)
    close = _behind_space(text, end)
    if not text.startswith(CLOSE, close):
        return _malformed(f"{CLOSE} must follow the JSON"), _after(text, end)
    at = close + len(CLOSE)
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        return _malformed('it needs a "name"'), at
    if not isinstance(body.get("arguments", {}), dict):
        return _malformed('"arguments" must be an object'), at
    return Call(body["name"], body.get("arguments", {})), at


def _after(text: str, start: int) -> int:
    """Where to read on after a call that could not be read: behind its end, or at the next beginning before that."""
    mark = _MARK.search(text, start)
    if mark is None:
        return len(text)
    return mark.start() if mark[0] == OPEN else mark.end()


def _behind_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _malformed(what: str) -> Outcome:
    return Outcome(f"malformed call: {what}", "malformed")
