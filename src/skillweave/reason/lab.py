"""Run hypotheses in the sandbox: what does a program give for the training inputs, and for the probe inputs?

A program's expected outputs never enter the sandbox: its values come out as JSON and are compared here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from skillweave.errors import UserError
from skillweave.files.parse_json import parse_json
from skillweave.reason.hypothesis import Evaluation
from skillweave.reason.probes import probe_inputs
from skillweave.reason.problem import ExamplePairs, Missing, Value
from skillweave.tasks.verifiers.code_result import same_result
from skillweave.tools.sandbox import Limits, run_for_text

LIMITS = Limits(seconds=0.5, output=0, characters=100_000)
"""What one run of a program on all inputs may use. ``characters`` bounds each value, written as JSON. What is printed
is dropped."""

_MEMORY = 4096
"""How many executions are remembered."""
_TELL = 0.002
"""Seconds for which results are collected before the event loop is told. To wake it for each of them would cost more
than a small program's run."""
_ALONE = 0.25
"""The part of the seconds that a program may use on one input, when its inputs are run one at a time."""
_BREAKS = 2
"""After this many single inputs on which a program breaks a limit, its remaining inputs are not run."""
_BROKEN = ("TimeoutError", "MemoryError", "RuntimeError")
"""The errors that end a run when a limit is broken."""

# It follows the program in one text, so that a run is one message to the worker. A program that changes the names that
# stand here changes only its own values. Each line that comes out is JSON: a list with the value, or a list of two:
# whether the function had returned, and the error. The inputs are read from a text, so no two of them share anything.
ENDING = """
from json import dumps as _sb_dumps, loads as _sb_loads
_sb_lines = []
for _sb_input in _sb_loads(_sb_inputs):
    _sb_returned = False
    try:
        _sb_value = f(_sb_input)
        _sb_returned = True
        _sb_lines.append(_sb_dumps([_sb_value]))
    except BaseException as _sb_error:
        _sb_kind = f"{_sb_error!r}"[:100].partition("(")[0]
        _sb_lines.append(_sb_dumps([_sb_returned, f"{_sb_kind}: {_sb_error}"[:300]]))
"\\n".join(_sb_lines)
"""

Outcome = Value | Missing
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class _Run:
    """What a program gives for the first inputs, and the digest of what it gives for all of them."""

    outcomes: tuple[Outcome, ...]
    behaviour: str


_Key = tuple[str, tuple[str, ...], int]
"""A program, its inputs as JSON, and for how many of them the values are kept."""
_Future = asyncio.Future[_Run]


class Lab:
    """Executes programs that define ``f(x)``. Many calls may wait at once; equal ones are executed once.

    Each program runs in an interpreter state of its own. Each input is a fresh copy. If a program breaks a limit, its
    inputs are run one at a time, so that the others keep their results; after two inputs that break a limit, the rest
    is not run. Use it as a context manager, or call :meth:`close`.

    - ``probes``: how many probe inputs are made from a problem's training inputs
    - ``workers``: how many programs run at once, at most one for each processor; None: one for each processor
    """

    def __init__(self, probes: int = 16, seed: int = 0, workers: int | None = None, limits: Limits = LIMITS) -> None:
        self._probes, self._seed, self._limits = probes, seed, limits
        self._workers = workers or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="lab")
        # Identity of examples -> the examples, and their training and probe inputs as JSON.
        self._inputs: OrderedDict[int, tuple[ExamplePairs, tuple[str, ...]]] = OrderedDict()
        self._lock = threading.Lock()  # of all that follows
        self._queue: deque[_Key] = deque()
        self._waiting: dict[_Key, list[_Future]] = {}  # for what is in the queue, and for what runs
        self._ended: dict[asyncio.AbstractEventLoop, list[tuple[_Future, _Run | Exception]]] = {}  # not yet told
        self._runs: OrderedDict[_Key, _Run] = OrderedDict()
        self._busy = 0  # threads that take from the queue
        self._closed = False

    @property
    def probes(self) -> int:
        """How many probe inputs are made for a problem."""
        return self._probes

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the programs that run, and drop those that have not begun: who waits for one gets an error."""
        with self._lock:
            self._closed = True
            dropped = list(self._queue)
            self._queue.clear()
        for key in dropped:
            self._end(key, RuntimeError("the lab was closed before this program began"))
        self._threads.shutdown()

    async def evaluate(self, program: str, examples: ExamplePairs) -> Evaluation:
        """What the program gives for the training inputs, which of it is right, and the digest of its behaviour."""
        run = await self._run(program, self._with_probes(examples), len(examples.pairs))
        solved = tuple(
            not isinstance(found, Missing) and same_result(found, pair.output)
            for found, pair in zip(run.outcomes, examples.pairs, strict=True)
        )
        return Evaluation(run.outcomes, solved, run.behaviour)

    async def apply(self, program: str, inputs: Sequence[Value]) -> list[Value | Missing]:
        """What the program gives for each input, or :class:`Missing` with the error."""
        return list((await self._run(program, tuple(map(json.dumps, inputs)), len(inputs))).outcomes)

    def _with_probes(self, examples: ExamplePairs) -> tuple[str, ...]:
        """The training inputs and their probe inputs, as JSON."""
        known = self._inputs.get(id(examples))
        if known is None:
            probes = probe_inputs(examples.inputs, self._probes, self._seed)
            known = examples, tuple(map(json.dumps, (*examples.inputs, *probes)))
            _remember(self._inputs, id(examples), known)
        return known[1]

    async def _run(self, program: str, inputs: tuple[str, ...], kept: int) -> _Run:
        key = (program, inputs, kept)
        future: _Future = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the lab is closed")
            if key in self._runs:
                self._runs.move_to_end(key)
                return self._runs[key]
            if key not in self._waiting:
                self._waiting[key] = []
                self._queue.append(key)
            self._waiting[key].append(future)
            if self._busy < self._workers:
                self._busy += 1
                self._threads.submit(self._work)
        return await future

    def _work(self) -> None:
        """In a thread: run what is in the queue until it is empty."""
        while True:
            with self._lock:
                if not self._queue:
                    self._busy -= 1
                    return
                key = self._queue.popleft()
            self._end(key, _execute(*key, self._limits))

    def _end(self, key: _Key, run: _Run | Exception) -> None:
        """In any thread: remember the run, and have everybody told who waits for it."""
        with self._lock:
            if isinstance(run, _Run):
                _remember(self._runs, key, run)
            futures = self._waiting.pop(key)
            for closed in [loop for loop in self._ended if loop.is_closed()]:
                del self._ended[closed]  # it was closed before it could be told, so nobody waits any more
            loops = {future.get_loop() for future in futures} - self._ended.keys()
            for future in futures:
                self._ended.setdefault(future.get_loop(), []).append((future, run))
        for loop in loops:
            try:
                loop.call_soon_threadsafe(loop.call_later, _TELL, self._tell, loop)
            except RuntimeError:  # it was closed, so nobody waits any more
                with self._lock:
                    self._ended.pop(loop, None)  # another thread may have forgotten it meanwhile

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the event loop: end the waiting for everything that has ended meanwhile."""
        with self._lock:
            ended = self._ended.pop(loop)
        for future, run in ended:
            if not future.done():  # it may have been cancelled
                if isinstance(run, _Run):
                    future.set_result(run)
                else:
                    future.set_exception(run)


def _execute(program: str, inputs: Sequence[str], kept: int, limits: Limits) -> _Run | Exception:
    """Run the program once on all inputs, or once on each input if that breaks a limit.

    An exception is returned: the caller waits in another thread.
    """
    try:
        outcomes, broken = _attempt(program, inputs, limits)
        if broken is not None and len(inputs) > 1:
            outcomes = _one_by_one(program, inputs, limits)
        return _Run(tuple(outcomes[:kept]), behaviour_digest(outcomes))
    except Exception as error:
        return error


def _one_by_one(program: str, inputs: Sequence[str], limits: Limits) -> list[Outcome]:
    outcomes: list[Outcome] = []
    breaks, broken = 0, ""
    shorter = replace(limits, seconds=limits.seconds * _ALONE)
    for text in inputs:
        if breaks == _BREAKS:
            outcomes.append(Missing(f"{broken}: not run, because the program broke a limit on {_BREAKS} other inputs"))
            continue
        alone, found = _attempt(program, [text], shorter)
        outcomes += alone
        if found is not None:
            broken, breaks = found, breaks + 1
    return outcomes


def _attempt(program: str, inputs: Sequence[str], limits: Limits) -> tuple[list[Outcome], str | None]:
    """The outcome for each input, and the kind of the error if the run ended with one that no program can catch."""
    result = run_for_text(program, ENDING, {"_sb_inputs": f"[{','.join(inputs)}]"}, limits)
    if result.error is not None:
        kind = result.error.partition(":")[0]
        return [Missing(result.error)] * len(inputs), kind if kind in _BROKEN else None
    lines = result.value.split("\n") if inputs else []
    if len(lines) != len(inputs):
        return [_CHANGED] * len(inputs), None
    if len(result.value) <= limits.characters:
        try:
            return [_outcome(written) for written in parse_json(f"[{','.join(lines)}]", "the values")], None
        except UserError:  # one of them cannot be read
            pass
    return [_read(line, limits.characters) for line in lines], None


def _read(line: str, characters: int) -> Outcome:
    if len(line) > characters:
        return Missing(f"ValueError: the value has more than {characters:,} characters")
    try:
        return _outcome(parse_json(line, "the value"))
    except UserError as error:
        return Missing(f"ValueError: {error}")


def _outcome(written: Any) -> Outcome:
    match written:
        case [value]:
            return value
        case [bool(returned), str(why)]:
            return Missing(f"TypeError: the value is not plain data: {why}" if returned else why)
    return _CHANGED


_CHANGED = Missing("RuntimeError: the program changed how its values are read")


def behaviour_digest(outcomes: Sequence[Value | Missing]) -> str:
    """A digest of what a program gives for each input; equal for values that ``same_result`` calls equal.

    Errors count by their kind. Numbers that are not whole are rounded to 9 digits, so two of them that ``same_result``
    calls equal differ here in the rare case that a rounding step lies between them; and so do two numbers beyond 2**53
    that are not exactly equal.
    """
    plain = [
        {"error": found.why.partition(":")[0]} if isinstance(found, Missing) else [_canonical(found)]
        for found in outcomes
    ]
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def _canonical(value: Value) -> Value:
    kind = type(value)
    if kind is list:
        return value if set(map(type, value)) <= _EXACT else [_canonical(item) for item in value]
    if kind is float:
        return _whole(value) if value.is_integer() else _whole(float(f"{value:.9g}"))
    if kind is dict:
        return {key: _canonical(item) for key, item in value.items()}
    return value


_EXACT = {int, str, bool, type(None)}


def _whole(number: float) -> float:
    return int(number) if number.is_integer() else number


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    if len(memory) > _MEMORY:
        memory.popitem(last=False)
