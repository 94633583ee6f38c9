"""A model whose answers come from a function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from skillweave.reason.models.model import Completion, ModelCall


class ScriptedModel:
    """Answers each call with what ``script(call)`` returns (a text, or a whole completion), and remembers the calls.

    ``script`` may also raise, or be a coroutine function, for answers that come late. Tokens are counted as words.
    """

    def __init__(
        self,
        script: Callable[[ModelCall], str | Completion | Awaitable[str | Completion]],
        identity: str = "scripted",
    ) -> None:
        self.identity = identity
        self.calls: list[ModelCall] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = False
        self._script = script

    async def complete(self, call: ModelCall) -> Completion:
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)  # so that calls which begin together are in flight together
            answer = self._script(call)
            if isinstance(answer, Awaitable):
                answer = await answer
        finally:
            self.in_flight -= 1
        return answer if isinstance(answer, Completion) else completion(answer, call)

    async def close(self) -> None:
        self.closed = True


def completion(text: str, call: ModelCall, ended: Literal["stop", "length"] = "stop") -> Completion:
    """A completion of that text, whose tokens are counted as words."""
    prompt = sum(len(content.split()) for _, content in call.messages)
    return Completion(text, ended, prompt, len(text.split()))


def last_message(call: ModelCall) -> str:
    """The text of the last message of a call."""
    return call.messages[-1][1]


def one_after_another(*answers: str) -> Callable[[ModelCall], str]:
    """A script that gives these answers in order, and fails when there are no more."""
    rest = iter(answers)
    return lambda call: next(rest)
