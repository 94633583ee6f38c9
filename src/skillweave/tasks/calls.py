"""Answers that are calls of tools: what is called with which arguments, compared as JSON."""

from __future__ import annotations

from typing import Any

from skillweave.base.chat import Message
from skillweave.tasks.verifiers.json_value import same_json
from skillweave.tools.call import Call
from skillweave.tools.turn import call_text, read_turn

JUDGES_OF_CALLS = ("exact", "json")
"""The verifiers that take a message with tool calls as the gold answer."""


def calls_text(message: Message) -> str:
    """The message as a model of our own form writes it: its content, then every call."""
    calls = (call["function"] for call in message["tool_calls"])
    return message["content"] + "".join(call_text(Call(call["name"], call["arguments"])) for call in calls)


def same_calls(answer: str, gold: Message) -> float:
    """1 where the answer makes exactly the calls of the gold message: names and arguments, in any order, no more.

    Text beside the calls is free. A call that cannot be read is none of the gold ones.
    """
    wanted: list[dict[str, Any]] = [call["function"] for call in gold["tool_calls"]]
    for call in read_turn(answer).calls:
        found = {"name": call.name, "arguments": dict(call.arguments)} if isinstance(call, Call) else None
        at = next((at for at, one in enumerate(wanted) if _same(found, one)), None)
        if at is None:
            return 0.0
        del wanted[at]
    return float(not wanted)


def _same(found: Any, wanted: Any) -> bool:
    try:
        return same_json(found, wanted)
    except RecursionError:
        return False
