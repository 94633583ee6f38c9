"""The functions a model may call, and the calls of an episode: checked, in parallel, each with a time limit."""

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
"""Characters of an error that the model is shown."""
RESULT_LENGTH = 100_000
"""Characters of a result that are kept; what the model is shown fewer."""
MOST_HANGING = 64
"""Calls that may hang at a time: each keeps a thread, and beyond them no call is started."""


@dataclass(frozen=True)
class _Tool:
    """``make`` gives an episode its own function; where ``stateful`` is False it is always the same one."""

    make: Callable[[], Callable[..., Any]]
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    stateful: bool


class Toolbox:
    """Functions a model may call.

    A function's parameters are typed and described in a Google-style docstring ("Args:"), from which its JSON schema
    is made. ``timeout``: seconds a call may run; ``most_at_once``: calls that run at the same time, over all episodes.
    A call that waits for its turn is not on the clock. A thread that does not come back in time is left behind, since
    Python cannot end it, and counted in ``left_behind``; while :data:`MOST_HANGING` of them still run, every call
    fails. A result of more than :data:`RESULT_LENGTH` characters is cut, and says so.

    A context manager; :meth:`close` frees the threads.
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
        """Add a function; a decorator. Raises :class:`UserError` for one that makes no tool."""
        self._add(function, lambda: function, stateful=False)
        return function

    def register_stateful(self, make: Callable[[], Callable[..., Any]]) -> None:
        """Add a tool that remembers: ``make()`` gives each episode a function of its own. Else as :meth:`register`.

        To bring a tool back to where it stood, the calls that succeeded are made again. So a call that raises must
        change nothing, and the same calls must lead to the same state. Where the function is a method of an object
        with a ``__copy__``, that is copied instead wherever it can be.
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
        """The tools' names in the order in which they were registered."""
        return list(self._tools)

    def open(self) -> Session:
        """The state of one episode."""
        return Session(self, self._tools, self._threads)

    def open_after(self, pasts: Sequence[Sequence[Sequence[Call]]]) -> list[Session]:
        """An episode for each of ``pasts``, its stateful tools where these turns of calls left them.

        Different pasts are lived side by side, and of equal ones only the first: the others begin as its copies.
        """
        first = [next(at for at, other in enumerate(pasts) if other == past) for past in pasts]
        lived = {at: self.open() for at in first}
        list(self._threads.map(lambda at: lived[at].replay(pasts[at]), lived))  # list() waits, and raises

        def begun(at: int) -> Session:
            return lived[at] if at in lived else lived[first[at]].copy()

        return list(self._threads.map(begun, range(len(pasts))))

    def close(self) -> None:
        """Free the threads once the calls that were started are over; nothing can be started after."""
        self._threads.shutdown()

    def leave_behind(self, thread: threading.Thread) -> None:
        """Count a thread that did not come back."""
        with self._counting:
            self.left_behind += 1
            self._hanging.append(thread)

    @property
    def hanging(self) -> int:
        """How many of the threads that were left behind still run."""
        with self._counting:
            self._hanging = [thread for thread in self._hanging if thread.is_alive()]
            return len(self._hanging)

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """One episode's calls. What its stateful tools hold is seen by no other episode. Made by :meth:`Toolbox.open`."""

    def __init__(self, toolbox: Toolbox, tools: Mapping[str, _Tool], threads: ThreadPoolExecutor) -> None:
        self._toolbox, self._tools, self._threads = toolbox, tools, threads
        self._functions: dict[str, Callable[..., Any]] = {}
        self._done: dict[str, list[Call]] = {}

    def call(self, call: Call) -> Outcome:
        """What a call comes to; never raises on what the model wrote.

        A :class:`UserError` of the tool is raised: the model cannot mend that the sandbox's program is not installed.
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
        """All calls of one turn; their outcomes come in the order of the calls.

        Stateless ones run side by side, stateful ones one after the other. An outcome among the calls (it stands for a
        call that could not be read) is passed on as it is.
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
        over = itertools.count(1)  # next() on it is atomic, so that exactly one lane sees that it is the last

        def run(lane: list[tuple[int, Call]]) -> None:
            try:
                for index, call in lane:
                    outcomes[index] = self.call(call)
            except BaseException as problem:
                with suppress(InvalidStateError):  # another lane was first
                    turn.set_exception(problem)
                return
            if next(over) == len(busy):
                turn.set_result(outcomes)

        busy = [lane for lane in lanes if lane]
        if not busy:
            turn.set_result(outcomes)
        for lane in busy:
            self._threads.submit(run, lane)
        return turn

    def replay(self, calls: Sequence[Sequence[Call]]) -> None:
        """Bring the stateful tools to where they stood after these turns; the others are not called."""
        for call in itertools.chain.from_iterable(calls):
            if call.name in self._tools and self._tools[call.name].stateful:
                self.call(call)

    def copy(self) -> Session:
        """Another episode that stands where this one does."""
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
        """A new function for one that was left behind, brought to where it stood: the old one may still change."""
        done = self._done.pop(name, [])
        self._functions[name] = self._tools[name].make()
        self.replay([done])


_WAITING = Outcome("")


def _run(function: Callable[..., Any], arguments: Mapping[str, Any], timeout: float) -> Outcome | threading.Thread:
    """The outcome of a checked call, or where it took too long the thread that is left behind."""
    answers: queue.SimpleQueue[Outcome | UserError] = queue.SimpleQueue()
    # A daemon, so that one that hangs does not keep the program from ending.
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
    except BaseException as problem:  # also SystemExit: it ends the tool, not the episode
        kind = "timeout" if isinstance(problem, TimeoutError) else "exception"
        return _fault(kind, _named(problem), time.perf_counter() - start)


def _result_text(value: Any) -> str:
    """A tool's result as text, a text as it is and anything else as JSON; a long one is cut, and says so.

    The JSON is written piece by piece, so that a list that holds one text a thousand times is never written whole.
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
    """``ZeroDivisionError: division by zero``"""
    name = type(problem).__name__
    try:
        said = str(problem)
    except BaseException:  # its own __str__ is a person's code too
        return name
    return f"{name}: {said}" if said else name


def _fault(kind: str, text: str, seconds: float = 0.0) -> Outcome:
    text = " ".join(text[: 10 * _ERROR_LENGTH].split())  # an exception may hold a text of any length
    text = text if len(text) <= _ERROR_LENGTH else text[: _ERROR_LENGTH - 3] + "..."
    return Outcome(text, kind, seconds)
