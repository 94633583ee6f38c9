"""Run code that a model wrote: no files, no network, bounded in time, memory, depth and output.

The interpreter is pydantic-monty: a subset of Python written in Rust, without a file system, sockets or third-party
imports, which runs in a worker process of its own. Code that crashes it ends only the worker, which the pool replaces.
A call takes about 1 ms once the first worker runs. The size of a value is limited before it leaves the sandbox
(:mod:`skillweave.tools.values`).

It is not CPython. It has most of the language and a part of the standard library (``math``, ``json``, ``re``,
``random``, ``collections``, ``itertools``, ``datetime`` ...), but no third-party modules.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pydantic_monty as monty

from skillweave.errors import UserError
from skillweave.tools import values
from skillweave.tools.process_child import Opaque
from skillweave.tools.source import check_length, check_names, keep_value


@dataclass(frozen=True)
class Limits:
    """What one run may use, and the size of what may leave it.

    A run that exceeds one of the first three limits ends with an error. Output that is too long is cut, and the run
    continues. A value with more items or characters than allowed, or with more than
    :data:`skillweave.tools.values.LEVELS` levels, stays inside, and a stand-in that says so is returned. Items and
    characters are counted along the tree: a text that a list holds ten times counts ten times.
    """

    seconds: float = 2.0
    """Execution time. A worker that does not stop by itself is killed ``_GRACE`` seconds later."""
    memory: int = 64 * 2**20
    """Bytes of the interpreter's heap."""
    depth: int = 200
    """Most calls within calls."""
    output: int = 10_000
    """Most characters of printed text that are kept."""
    items: int = 100_000
    """Most items of a value that is returned, including those of lists inside it."""
    characters: int = 1_000_000
    """Most characters of all texts, bytes and large numbers in a value that is returned."""


class Printed:
    """Collects what a run prints, up to ``room`` characters. It is called with each piece."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._pieces: list[str] = []

    def __call__(self, _stream: Literal["stdout", "stderr"], text: str) -> None:
        if self.room > 0:
            self._pieces.append(text[: self.room])
        self.room -= len(text)

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def cut(self) -> int:
        """The number of characters that were printed and not kept."""
        return max(0, -self.room)


@dataclass(frozen=True)
class Result:
    """The result of a run.

    - ``ok``: False if the code could not be parsed, raised an exception, or broke a limit
    - ``value``: the last expression's value as a Python object, or None if the code ends with a statement. A function,
      a class, an object of the sandbox, or a value that exceeds the limits is replaced by a stand-in
      (:class:`~skillweave.tools.process_child.Opaque`) that says what it stands for.
    - ``output``: what was printed, at most ``Limits.output`` characters
    - ``error``: an error as ``"ZeroDivisionError: ..."``, of at most about 2,000 characters, or None
    - ``cut``: the number of printed characters that are not in ``output``
    """

    ok: bool
    value: Any
    output: str
    error: str | None
    seconds: float
    cut: int = 0


Host = Callable[..., Any]
"""A function that answers calls of ``_sw_host`` from inside the sandbox: it takes and returns plain data, or raises a
builtin exception."""

_GRACE = 1.0
ERROR = 2000
"""Most characters of an error that are kept: an exception's text may be as long as the interpreter's memory."""
# Code that is being checked does not need to sleep, and sleeping could extend a run beyond its limit (the clock stops
# meanwhile). A fixed seed makes results reproducible.
POLICY: monty.OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}

_lock = threading.Lock()
_opened: dict[str, tuple[int, monty.Monty]] = {}  # use -> the process that started the pool, and the pool


class InterpreterSession:
    """One interpreter state: names persist from one text to the next. Closing it returns its worker to the pool.

    A session that asks another session (``host`` of :meth:`feed`) takes its worker from a separate pool (``asks``).
    Otherwise several such pairs in threads could wait for each other's workers forever.
    """

    def __init__(self, limits: Limits | None = None, *, asks: bool = False) -> None:
        self._limits = limits or Limits()
        self._asks = asks

    def __enter__(self) -> InterpreterSession:
        self._session = _checkout("asks" if self._asks else "runs", self._limits)
        self._session.__enter__()
        try:
            question_limits = {"items": self._limits.items, "characters": self._limits.characters}
            values.prepare(self._session, **(question_limits if self._asks else {}))
        except monty.MontyError as problem:
            self._session.__exit__(None, None, None)
            raise UserError(
                f"a sandbox with these limits is too small to start ({shortened(str(problem))})"
            ) from problem
        return self

    def __exit__(self, *problem: Any) -> None:
        self._session.__exit__(*problem)

    def feed(
        self, code: str, inputs: Mapping[str, Any] | None = None, host: Host | None = None, name: str | None = None
    ) -> Result:
        """Run ``code`` with ``inputs`` as global names.

        The code may call ``host`` as ``_sw_host``, and ``name`` becomes its ``__name__``. Errors of the code are in the
        result. Raises ``TypeError`` for an input that cannot enter the sandbox; plain values can (numbers, text, bytes,
        lists, tuples, dicts, sets, None).
        """
        printed = Printed(self._limits.output)
        start = time.perf_counter()
        value, error = None, None
        bound = {**({} if name is None else {"__name__": name}), **(inputs or {})}
        lookup = None if host is None else {"_sb_host": lambda taken: host(*self._read(taken))}
        try:
            check_length(code)
            code.encode()
            check_names(code)
            source, is_kept = keep_value(code, values.KEPT)
            values.drive(self._session, source, inputs=bound, external_lookup=lookup, print_callback=printed)
            if is_kept:
                value = values.take(self._session, self._limits.items, self._limits.characters)
            elif is_kept is None:
                value = Opaque("a value that was not read: this version of Python does not know the code's syntax")
        except monty.MontyConversionError as problem:
            raise TypeError(f"this input cannot enter the sandbox: {problem}") from problem
        except _OF_CODE as problem:
            error = _explained(problem)
        return Result(error is None, value, printed.text, error, time.perf_counter() - start, printed.cut)

    def _read(self, taken: list[Any]) -> Any:
        return values.read_value(taken, self._limits.items, self._limits.characters)


def _checkout(use: str, limits: Limits) -> monty.MontySession:
    bounds: monty.ResourceLimits = {
        "max_feed_duration_secs": limits.seconds,
        "max_memory": limits.memory,
        "max_recursion_depth": limits.depth,
    }
    return pool(use).checkout(limits=bounds, os_policy=POLICY)


_OF_CODE = (SyntaxError, UnicodeEncodeError, monty.MontyError)
"""The errors with which a run of somebody's code may end."""


def _explained(problem: BaseException) -> str:
    """One of :data:`_OF_CODE` as ``"ZeroDivisionError: ..."``."""
    if isinstance(problem, UnicodeEncodeError):
        return "SyntaxError: the code holds a lone surrogate, which no source text may"
    if isinstance(problem, SyntaxError | monty.MontySyntaxError):
        return shortened(f"SyntaxError: {problem}")
    if isinstance(problem, monty.MontyCrashedError):
        if problem.timed_out:
            return "TimeoutError: the worker did not stop in time and was killed"
        return shortened(str(problem) or "RuntimeError: the worker broke down")
    return shortened(str(problem))


def shortened(error: str) -> str:
    """An error cut to about 2,000 characters; if it is cut, it says how many characters are left out."""
    if len(error) <= ERROR:
        return error
    return f"{error[:ERROR]}... ({len(error) - ERROR:,} more characters were cut off)"


def run(code: str, inputs: Mapping[str, Any] | None = None, limits: Limits | None = None) -> Result:
    """Run ``code`` with ``inputs`` as global names, in a new interpreter state.

    Errors of the code are in the result. Raises ``TypeError`` for an input that cannot enter the sandbox; plain values
    can (numbers, text, bytes, lists, tuples, dicts, sets, None). Raises :class:`UserError` if the sandbox's program is
    not installed, and in a child process that was forked after the first run.
    """
    with InterpreterSession(limits) as session:
        return session.feed(code, inputs)


def run_for_text(code: str, ending: str, inputs: Mapping[str, Any], limits: Limits) -> Result:
    """Run ``code`` and then ``ending``, which is our own code, in a new interpreter state; the value is a text.

    A run takes about 0.3 ms, a third of what :func:`run` takes, because a text needs no flattening. The last expression
    of ``ending`` must be a text even if ``code`` has changed every name: it is a method of a constant, as in
    ``"".join(...)``. The text is at most as long as ``limits.memory``. Errors, also those of ``ending``, are in the
    result.
    """
    printed = Printed(limits.output)
    start = time.perf_counter()
    value, error = None, None
    try:
        check_length(code)
        check_names(code)
        source = f"{code}\n\n{ending}"
        source.encode()
        with _checkout("runs", limits) as session:
            value = session.feed_run(source, inputs=dict(inputs), print_callback=printed)
    except _OF_CODE as problem:
        error = _explained(problem)
    return Result(error is None, value, printed.text, error, time.perf_counter() - start, printed.cut)


def pool(use: str = "runs") -> monty.Monty:
    """The pool of workers of this process for one use. It is started at the first call."""
    with _lock:
        if use not in _opened:
            started = monty.Monty(feed_duration_limit_grace=_GRACE)
            try:
                started.__enter__()
            except FileNotFoundError as error:
                raise UserError("the sandbox's program is missing: pip install pydantic-monty-runtime") from error
            _opened[use] = (os.getpid(), started)
        owner, workers = _opened[use]
        if owner != os.getpid():
            # The interpreter's runtime has threads that a fork does not copy, so a call would wait forever.
            raise UserError(
                "the sandbox was started before this process was forked and cannot run in it: "
                "start workers with the 'spawn' method, or run no code before they are forked"
            )
        return workers


@atexit.register
def _close() -> None:
    for owner, workers in _opened.values():
        if owner == os.getpid():
            workers.__exit__(None, None, None)
