"""What a family of tasks with tools is: a builtin generator that brings its tools and an expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skillweave.base.chat import Message
from skillweave.tasks.builtin.kind import Builtin
from skillweave.tools.call import Call
from skillweave.tools.toolbox import Session, Toolbox


@dataclass(frozen=True, kw_only=True)
class Family(Builtin):
    """``toolbox(settings)`` makes the tools; ``solve(prompt, settings, session)`` gives the messages after the prompt.

    The messages are an expert's whole way: assistant messages with ``tool_calls`` (OpenAI form, arguments as an
    object), a ``tool`` message with the result of each, and last the assistant's answer.
    """

    toolbox: Callable[[Any], Toolbox]
    solve: Callable[[str, Any, Session], list[Message]]


class Script:
    """An expert at work: each call is really made, and what the tool said stands in the messages."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._messages: list[Message] = []

    def call(self, name: str, **arguments: Any) -> str:
        """Call one tool in a turn of its own; the text it gave. A fault is a bug in the expert and raises."""
        outcome = self._session.call(Call(name, arguments))
        if outcome.fault is not None:
            raise RuntimeError(
                f"the scripted expert's call {name}({arguments}) failed: {outcome.fault}: {outcome.text}"
            )
        function = {"name": name, "arguments": arguments}
        self._messages += [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": outcome.text},
        ]
        return outcome.text

    def answer(self, text: str) -> list[Message]:
        """All messages, the answer last."""
        return [*self._messages, {"role": "assistant", "content": text}]
