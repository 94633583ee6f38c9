"""The functions that a model may call, and the calls of an episode: checked, in parallel, each with a time limit."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

from skillweave.errors import UserError, nearest
from skillweave.tools.call import Call, Outcome
from skillweave.tools.function import checker_of, schema_of

F = TypeVar("F", bound=Callable[..., Any])

_ERROR_LENGTH = 300
"""Most characters of an error that the model sees."""
RESULT_LENGTH = 100_000
"""Most characters of a result that are kept; the model sees fewer."""
MOST_HANGING = 64
"""Most calls that may hang at a time. Each occupies a thread; when there are this many, no call is started."""


@dataclass(frozen=True)
class _Tool:
    """``make`` returns the function for an episode; unless the tool is ``stateful``, it is always the same."""

    make: Callable[[], Callable[..., Any]]
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    stateful: bool


class Toolbox:
    """Functions that a model may call. It is a context manager; :meth:`close` frees its threads.

    A function has type hints and a Google-style docstring with "Args:", from which its JSON schema is made.

    - ``timeout``: most seconds for which a call may run; waiting for its turn does not count
    - ``most_at_once``: most calls that run at the same time, over all episodes
    - ``left_behind``: the number of threads that did not return in time. Python cannot end them. While
      :data:`MOST_HANGING` of them still run, every call fails.

    A result of more than :data:`RESULT_LENGTH` characters is cut, and says so.
    """

    def __init__(
        self, functions: Iterable[Callable[..., Any]] = (), *, timeout: float = 5.0, most_at_once: int = 8
    ) -> None:
        if timeout <= 0 or most_at_once < 1:
            raise UserError(f"timeout is {timeout:g}, most_at_once {most_at_once}: both must be more than 0")
        self.timeout = timeout
        self.left_behind = 0
        self._counting = threading.Lock()
        self._hanging: list[threading.Thread] = []
        self.schemas: list[dict[str, Any]] = []
        self._tools: dict[str, _Tool] = {}
        self._threads = ThreadPoolExecutor(most_at_once, thread_name_prefix="tools")
        for function in functions:
            self.register(function)

    def register(self, function: F) -> F:
        """Add a function; can be used as a decorator. Raises :class:`UserError` if it cannot be a tool."""
        self._add(function, lambda: function, stateful=False)
        return function

    def register_stateful(self, make: Callable[[], Callable[..., Any]]) -> None:
        """Add a tool with a state: ``make()`` returns a function of its own for each episode. Else as :meth:`register`.

        To restore a tool's state, the calls that succeeded are made again. So a call that raises must change nothing,
        and the same calls must lead to the same state. If the function is a method of an object with a ``__copy__``,
        the object is copied instead where possible.
        """
        self._add(make(), make, stateful=True)

    def _add(self, function: Callable[..., Any], make: Callable[[], Callable[..., Any]], *, stateful: bool) -> None:
        schema = schema_of(function)
        name = schema["function"]["name"]
        if name in self._tools:
            raise UserError(f"there is a tool '{name}' already: give one of the two functions another name")
        self._tools[name] = _Tool(make, checker_of(function), stateful)
        self.schemas.append(schema)

    @property
    def names(self) -> list[str]:
        """The names of the tools, in the order in which they were registered."""
        return list(self._tools)

    def open(self) -> ToolSession:
        """Open a session for one episode."""
        return ToolSession(self, self._tools, self._threads)

    def open_after(self, pasts: Sequence[Sequence[Sequence[Call]]]) -> list[ToolSession]:
        """Open a session for each of ``pasts``, with stateful tools in their state after these turns of calls.

        Different pasts are replayed side by side. Equal ones are replayed once, and the other sessions are copies.
        """
        first = [next(at for at, other in enumerate(pasts) if other == past) for past in pasts]
        replayed = {at: self.open() for at in first}
        list(self._threads.map(lambda at: replayed[at].replay(pasts[at]), replayed))  # list() waits, and raises

        def session_of(at: int) -> ToolSession:
            return replayed[at] if at in replayed else replayed[first[at]].copy()

        return list(self._threads.map(session_of, range(len(pasts))))

    def close(self) -> None:
        """Wait for the calls that were started, and free the threads. After that no call can be started."""
        self._threads.shutdown()

    def leave_behind(self, thread: threading.Thread) -> None:
        """Count a thread that did not return in time."""
        with self._counting:
            self.left_behind += 1
            self._hanging.append(thread)

    @property
    def hanging(self) -> int:
        """The number of threads left behind that still run."""
        with self._counting:
            self._hanging = [thread for thread in self._hanging if thread.is_alive()]
            return len(self._hanging)

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ToolSession:
    """The calls of one episode, with its own state of the stateful tools. Created by :meth:`Toolbox.open`."""

    def __init__(self, toolbox: Toolbox, tools: Mapping[str, _Tool], threads: ThreadPoolExecutor) -> None:
        self._toolbox, self._tools, self._threads = toolbox, tools, threads
        self._functions: dict[str, Callable[..., Any]] = {}
        self._done: dict[str, list[Call]] = {}

    def call(self, call: Call) -> Outcome:
        """Make a call and return its outcome. Never raises on what the model wrote.

        A :class:`UserError` of the tool is raised, for example if the sandbox's program is not installed: the model
        cannot fix that.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            return _fault("unknown tool", f"unknown tool '{call.name:.40}'; {nearest(call.name[:100], self._tools)}")
        try:
            arguments = tool.check(call.arguments)
        except ValueError as problem:
            return _fault("wrong arguments", f"wrong arguments for {call.name}: {problem}")
        if call.name not in self._functions:
            self._functions[call.name] = tool.make()
        hanging = self._toolbox.hanging
        if hanging >= MOST_HANGING:
            return _fault(
                "timeout", f"timeout: {hanging} calls that took too long still run, so {call.name} was not run"
            )
        outcome = _run(self._functions[call.name], arguments, self._toolbox.timeout)
        if isinstance(outcome, threading.Thread):
            self._toolbox.leave_behind(outcome)
            if tool.stateful:
                self._renew(call.name)
            seconds = self._toolbox.timeout
            return _fault("timeout", f"timeout: {call.name} gave no result in {seconds:g} s", seconds)
        if tool.stateful and outcome.fault is None:
            self._done.setdefault(call.name, []).append(call)
        return outcome

    def start(self, calls: Sequence[Call | Outcome]) -> Future[list[Outcome]]:
        """Start all calls of one turn; the outcomes will be in the order of the calls.

        Calls of stateless tools run side by side, calls of stateful ones one after the other. An outcome among the
        calls stands for a call that could not be read, and is returned as it is.
        """
        outcomes = [call if isinstance(call, Outcome) else _WAITING for call in calls]
        lanes: list[list[tuple[int, Call]]] = [[]]
        for index, call in enumerate(calls):
            if isinstance(call, Call):
                tool = self._tools.get(call.name)
                if tool is not None and tool.stateful:
                    lanes[0].append((index, call))
                else:
                    lanes.append([(index, call)])
        turn: Future[list[Outcome]] = Future()
        finished = itertools.count(1)  # next() on it is atomic, so exactly one lane sees that it is the last

        def run(lane: list[tuple[int, Call]]) -> None:
            try:
                for index, call in lane:
                    outcomes[index] = self.call(call)
            except BaseException as problem:
                with suppress(InvalidStateError):  # another lane has already failed
                    turn.set_exception(problem)
                return
            if next(finished) == len(busy):
                turn.set_result(outcomes)

        busy = [lane for lane in lanes if lane]
        if not busy:
            turn.set_result(outcomes)
        for lane in busy:
            self._threads.submit(run, lane)
        return turn

    def replay(self, calls: Sequence[Sequence[Call]]) -> None:
        """Bring the stateful tools to their state after these turns; other tools are not called."""
        for call in itertools.chain.from_iterable(calls):
            if call.name in self._tools and self._tools[call.name].stateful:
                self.call(call)

    def copy(self) -> ToolSession:
        """Another session in the same state."""
        twin = self._toolbox.open()
        for name, done in self._done.items():
            function = self._functions[name]
            if inspect.ismethod(function) and hasattr(function.__self__, "__copy__"):
                twin._functions[name] = MethodType(function.__func__, copy.copy(function.__self__))
                twin._done[name] = list(done)
            else:
                twin.replay([done])
        return twin

    def _renew(self, name: str) -> None:
        """Replace the function of a tool that was left behind, because it may still run, by one in the same state."""
        done = self._done.pop(name, [])
        self._functions[name] = self._tools[name].make()
        self.replay([done])


_WAITING = Outcome("")


def _run(function: Callable[..., Any], arguments: Mapping[str, Any], timeout: float) -> Outcome | threading.Thread:
    """The outcome of a checked call, or the thread that is left behind if the call took too long."""
    answers: queue.SimpleQueue[Outcome | UserError] = queue.SimpleQueue()
    # A daemon thread, because otherwise a call that hangs would keep the program from ending.
    thread = threading.Thread(target=lambda: answers.put(_attempt(function, arguments)), daemon=True)
    thread.start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        return thread
    if isinstance(answer, UserError):
        raise answer
    return answer


def _attempt(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Outcome | UserError:
    start = time.perf_counter()
    try:
        value = function(**arguments)
        return Outcome(_result_text(value), None, time.perf_counter() - start)
    except UserError as problem:
        return problem
    except BaseException as problem:  # also SystemExit, which ends only the tool
        kind = "timeout" if isinstance(problem, TimeoutError) else "exception"
        return _fault(kind, _named(problem), time.perf_counter() - start)


def _result_text(value: Any) -> str:
    """A tool's result as text: a text as it is, anything else as JSON. A long one is cut, and says so.

    The JSON is written piece by piece, so that a list that holds a long text a thousand times is never written whole.
    """
    if isinstance(value, str):
        more = len(value) - RESULT_LENGTH
        return value if more <= 0 else f"{value[:RESULT_LENGTH]}... ({more:,} more characters were cut off)"
    pieces: list[str] = []
    room = RESULT_LENGTH
    for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        pieces.append(piece[:room])
        room -= len(piece)
        if room < 0:
            return f"{''.join(pieces)}... (the rest was cut off)"
    return "".join(pieces)


def _named(problem: BaseException) -> str:
    """An exception's type and message, as in ``ZeroDivisionError: division by zero``."""
    name = type(problem).__name__
    try:
        message = str(problem)
    except BaseException:  # its own __str__ is a user's code too and may raise
        return name
    return f"{name}: {message}" if message else name


def _fault(kind: str, text: str, seconds: float = 0.0) -> Outcome:
    text = " ".join(text[: 10 * _ERROR_LENGTH].split())  # an exception's message may have any length
    text = text if len(text) <= _ERROR_LENGTH else text[: _ERROR_LENGTH - 3] + "..."
    return Outcome(text, kind, seconds)
