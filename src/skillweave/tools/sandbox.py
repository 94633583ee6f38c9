"""Run code that a model wrote: no files, no network, bounded in time, memory, depth and output.

The interpreter is pydantic-monty: a Python subset written in Rust that knows no file system, no sockets and no
foreign imports, and that runs in a worker process of its own. Code that crashes it takes down the worker, which
the pool replaces; this process lives on. A call costs some 0.3 ms once the first worker is up.

What it is not: CPython. Most of the language and a part of the standard library (``math``, ``json``, ``re``,
``random``, ``collections``, ``itertools``, ``datetime`` ...) are there; third-party modules are not.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pydantic_monty as monty

from skillweave.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What one run may use. Beyond any of the first three it ends with an error; output is cut and goes on."""

    seconds: float = 2.0
    """Execution time; a worker that does not stop by itself is killed ``_GRACE`` seconds later."""
    memory: int = 64 * 2**20
    """Bytes of the interpreter's heap."""
    depth: int = 200
    """Calls within calls."""
    output: int = 10_000
    """Characters of printed text kept."""


@dataclass(frozen=True)
class Result:
    """What a run came to. ``ok`` is False when the code did not parse, raised, or broke a limit.

    ``value``: the last expression's value as a Python object, None where the code ends with a statement;
    a function or a class of the sandbox comes out as a stand-in that holds no code.
    ``output``: what was printed, at most ``Limits.output`` characters. ``error``: ``"ZeroDivisionError: ..."``.
    """

    ok: bool
    value: Any
    output: str
    error: str | None
    seconds: float


_GRACE = 1.0
# Sleeping is worth nothing to a checker and would stretch a run past its limit (the clock stops meanwhile);
# a fixed seed makes the same code give the same result twice.
POLICY: monty.OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}

_lock = threading.Lock()
_opened: tuple[int, monty.Monty] | None = None  # the process that started the pool, and the pool


def run(code: str, inputs: Mapping[str, Any] | None = None, limits: Limits | None = None) -> Result:
    """Run ``code`` with ``inputs`` bound as global names, in a fresh interpreter state.

    Never raises on what the code does. Raises ``TypeError`` for an input that cannot enter the sandbox (plain
    values can: numbers, text, bytes, lists, tuples, dicts, sets, None), :class:`UserError` where the sandbox's
    program is not installed and in a child forked after the first run.
    """
    limits = limits or Limits()
    pieces: list[str] = []
    room = limits.output

    def keep(_stream: Literal["stdout", "stderr"], text: str) -> None:
        nonlocal room
        if room > 0:
            pieces.append(text[:room])
            room -= len(text)

    bounds: monty.ResourceLimits = {
        "max_feed_duration_secs": limits.seconds,
        "max_memory": limits.memory,
        "max_recursion_depth": limits.depth,
    }
    start = time.perf_counter()
    value, error = None, None
    try:
        code.encode()
        with pool().checkout(limits=bounds, os_policy=POLICY) as session:
            value = session.feed_run(code, inputs=dict(inputs or {}), print_callback=keep)
    except monty.MontyConversionError as problem:
        raise TypeError(f"this input cannot enter the sandbox: {problem}") from problem
    except monty.MontyCrashedError as problem:
        error = "TimeoutError: the worker did not stop in time and was killed" if problem.timed_out else str(problem)
    except monty.MontySyntaxError as problem:
        error = f"SyntaxError: {problem}"
    except monty.MontyError as problem:
        error = str(problem)
    except UnicodeEncodeError:
        error = "SyntaxError: the code holds a lone surrogate, which no source text may"
    seconds = time.perf_counter() - start
    return Result(ok=error is None, value=value, output="".join(pieces), error=error, seconds=seconds)


def pool() -> monty.Monty:
    """This process's pool of workers, started at the first call."""
    global _opened
    with _lock:
        if _opened is None:
            started = monty.Monty(feed_duration_limit_grace=_GRACE)
            try:
                started.__enter__()
            except FileNotFoundError as error:
                raise UserError("the sandbox's program is missing: pip install pydantic-monty-runtime") from error
            _opened = (os.getpid(), started)
        owner, workers = _opened
        if owner != os.getpid():
            # The interpreter's runtime has threads that a fork does not copy: a call would wait for ever.
            raise UserError(
                "the sandbox was started before this process was forked and cannot run in it: "
                "start workers with the 'spawn' method, or run no code before they are forked"
            )
        return workers


@atexit.register
def _close() -> None:
    if _opened is not None and _opened[0] == os.getpid():
        _opened[1].__exit__(None, None, None)
