"""A family of tasks with tools: a builtin generator that brings its tools and a scripted expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skillweave.base.chat import Message
from skillweave.tasks.builtin.kind import Builtin
from skillweave.tools.call import Call
from skillweave.tools.toolbox import Toolbox, ToolSession


@dataclass(frozen=True, kw_only=True)
class Family(Builtin):
    """A generator with tools and an expert.

    * ``toolbox(settings)`` returns the tools
    * ``solve(prompt, settings, session)`` returns the expert's messages after the prompt: assistant messages with
      ``tool_calls`` (in OpenAI's form, arguments as an object), a ``tool`` message with the result of each call, and
      last the assistant's answer
    """

    toolbox: Callable[[Any], Toolbox]
    solve: Callable[[str, Any, ToolSession], list[Message]]


class Script:
    """Records an expert's messages. Each call is really made, and the messages hold the tool's real result."""

    def __init__(self, session: ToolSession) -> None:
        self._session = session
        self._messages: list[Message] = []

    def call(self, name: str, **arguments: Any) -> str:
        """Call one tool in a separate turn and return the text of its result.

        Raises RuntimeError if the call fails: that is a bug in the expert.
        """
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
        """All messages, with this answer as the last one."""
        return [*self._messages, {"role": "assistant", "content": text}]
