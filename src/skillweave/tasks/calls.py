"""Answers that are tool calls: their text, and whether two of them are the same."""

from __future__ import annotations

from typing import Any

from skillweave.base.chat import Message
from skillweave.tasks.verifiers.json_value import same_json
from skillweave.tools.call import Call
from skillweave.tools.turn import call_text, read_turn

JUDGES_OF_CALLS = ("exact", "json")
"""The verifiers that accept a message with tool calls as the gold answer."""


def calls_text(message: Message) -> str:
    """The message as a model writes it in our own call format: its content, then each call."""
    calls = (call["function"] for call in message["tool_calls"])
    return message["content"] + "".join(call_text(Call(call["name"], call["arguments"])) for call in calls)


def same_calls(answer: str, gold: Message) -> float:
    """1 if the answer makes exactly the calls of the gold message, in any order, else 0.

    Names and arguments are compared as JSON. Text beside the calls does not matter. A call that cannot be read equals
    no gold call.
    """
    missing: list[dict[str, Any]] = [call["function"] for call in gold["tool_calls"]]
    for call in read_turn(answer).calls:
        made = {"name": call.name, "arguments": dict(call.arguments)} if isinstance(call, Call) else None
        at = next((at for at, gold_call in enumerate(missing) if _same(made, gold_call)), None)
        if at is None:
            return 0.0
        del missing[at]
    return float(not missing)


def _same(made: Any, gold_call: Any) -> bool:
    try:
        return same_json(made, gold_call)
    except RecursionError:
        return False
