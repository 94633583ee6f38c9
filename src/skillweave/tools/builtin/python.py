"""The tool ``python``: cells of code run in the sandbox, and each sees the variables of the previous ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pydantic_monty as monty

from skillweave.tools import sandbox, values
from skillweave.tools.sandbox import Limits, Printed
from skillweave.tools.source import check_names, keep_value

_LIMITS = Limits(seconds=1.0, memory=32 * 2**20, output=4000)
"""The limits of one cell; ``memory`` is for all variables of an episode and their copy as bytes. The time is shorter
than the sandbox's default: there are as many workers as cores, so cells of several episodes wait for each other while
the toolbox's clock runs."""
STATE = 4 * 2**20
"""Most bytes that the variables of one episode may take between two cells."""
STATES = values.ByteBudget(2**30)
"""The same for all episodes of this process together."""
_UNREAD = "(this version of Python does not know the syntax of the code: print the value of its last line to see it)"


class _State:
    """An interpreter state as bytes, counted in :data:`STATES` for as long as this object exists."""

    def __init__(self, data: bytes) -> None:
        if len(data) > STATE:
            raise MemoryError(
                f"the variables take {len(data):,} bytes, more than {STATE:,} that stay for the next call"
            )
        if not STATES.take(len(data)):
            raise MemoryError(f"the variables of all conversations take more than {STATES.most:,} bytes")
        self.data = data

    def __del__(self) -> None:
        if hasattr(self, "data"):
            STATES.give_back(len(self.data))


class Python:
    """The cells of one episode.

    Between two cells the variables, functions and classes are stored as bytes, so that an episode that waits for its
    model occupies no worker. A cell that raises, breaks a limit, or leaves more than :data:`STATE` bytes of variables
    does not change them.
    """

    def __init__(self, limits: Limits = _LIMITS) -> None:
        self._limits = limits
        self._state: _State | None = None

    def __copy__(self) -> Python:
        """Another episode in the same state. They can share the bytes, which never change."""
        twin = Python(self._limits)
        twin._state = self._state
        return twin

    def python(self, code: str) -> str:
        """Run Python code. Variables stay for the next call.

        Args:
            code: what it prints and the value of its last line are shown
        """
        printed = Printed(self._limits.output)
        check_names(code)
        source, is_kept = keep_value(code, values.KEPT)
        shown, state = self._feed(source, is_kept is True, printed)
        printed("stdout", _UNREAD if is_kept is None else shown)
        self._state = state
        return _cut(printed, len(shown) > self._limits.output)

    def _feed(
        self, code: str, is_kept: bool, keep: Callable[[Literal["stdout", "stderr"], str], None]
    ) -> tuple[str, _State]:
        """The text of the last line's value, and the new state. Raises the exception that the sandbox reports."""
        bounds: monty.ResourceLimits = {
            "max_feed_duration_secs": self._limits.seconds,
            "max_memory": self._limits.memory,
            "max_recursion_depth": self._limits.depth,
        }
        try:
            with sandbox.pool().checkout(limits=bounds, os_policy=sandbox.POLICY) as session:
                if self._state is None:
                    values.prepare(session)
                else:
                    session.load_session(self._state.data)
                values.drive(session, code, print_callback=keep)
                shown = values.show(session, self._limits.output + 1) if is_kept else ""
                return shown, _State(session.dump())
        except monty.MontyCrashedError as problem:
            if not problem.timed_out:
                raise RuntimeError("the interpreter broke down") from problem
            reason: BaseException = TimeoutError()
        except monty.MontyError as problem:
            reason = problem.exception()
            if len(str(problem)) > sandbox.ERROR:  # a huge text would be copied again and again
                reason = type(reason)(sandbox.shortened(str(problem).partition(": ")[2]))
        if isinstance(reason, TimeoutError):  # without milliseconds, so that the same cell has the same text
            reason = TimeoutError(f"the code ran longer than {self._limits.seconds:g} s")
        raise reason


def _cut(printed: Printed, more: bool) -> str:
    """The text of a cell's output; if it is cut, with the number of characters left out."""
    text = printed.text.rstrip("\n")
    if printed.cut:
        text += f"... ({'more than ' if more else ''}{printed.cut:,} more characters were cut off)"
    return text or "(nothing was printed)"
