"""Python for a model: cells run in the sandbox, one after the other, on the variables of the cells before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pydantic_monty as monty

from skillweave.tools import sandbox
from skillweave.tools.sandbox import Limits, Printed

_LIMITS = Limits(seconds=1.0, memory=32 * 2**20, output=4000)
"""Of one cell; ``memory`` is for all an episode's variables and their copy as bytes. Less time than the sandbox's own:
there are as many workers as cores, so cells of several episodes wait for each other while the toolbox's clock runs."""


class Python:
    """The cells of one episode.

    Between two cells the variables, functions and classes are kept as bytes, so that an episode that waits for its
    model holds no worker. A cell that raises or breaks a limit leaves them as they were.
    """

    def __init__(self, limits: Limits = _LIMITS) -> None:
        self._limits = limits
        self._state: bytes | None = None

    def __copy__(self) -> Python:
        """Another episode that stands where this one does: the bytes themselves never change."""
        twin = Python(self._limits)
        twin._state = self._state
        return twin

    def python(self, code: str) -> str:
        """Run Python code. Variables stay for the next call.

        Args:
            code: what it prints and the value of its last line are shown
        """
        printed = Printed(self._limits.output)
        value, state = self._feed(code, printed)
        if value is not None:
            printed("stdout", repr(value))
        self._state = state
        return printed.text.rstrip("\n") + ("..." if printed.cut else "") or "(nothing was printed)"

    def _feed(self, code: str, keep: Callable[[Literal["stdout", "stderr"], str], None]) -> tuple[Any, bytes]:
        """The value of the last line and the state after it, or the exception that the sandbox tells of."""
        bounds: monty.ResourceLimits = {
            "max_feed_duration_secs": self._limits.seconds,
            "max_memory": self._limits.memory,
            "max_recursion_depth": self._limits.depth,
        }
        try:
            with sandbox.pool().checkout(limits=bounds, os_policy=sandbox.POLICY) as session:
                if self._state is not None:
                    session.load_session(self._state)
                return session.feed_run(code, print_callback=keep), session.dump()
        except monty.MontyCrashedError as problem:
            if not problem.timed_out:
                raise RuntimeError("the interpreter broke down") from problem
            reason: BaseException = TimeoutError()
        except monty.MontyError as problem:
            reason = problem.exception()
        if isinstance(reason, TimeoutError):  # without the sandbox's milliseconds: the same cell, the same text
            reason = TimeoutError(f"the code ran longer than {self._limits.seconds:g} s")
        raise reason
