"""Run a program and one case in two separate sessions, between which only plain data passes, and compare.

The program runs first, as a whole, in a session that gets its inputs and nothing else. The case runs in a second
session (:mod:`skillweave.tasks.verifiers.code_case`), and its questions to the program are answered here. The program's
session never contains an expected value, and nothing that the program redefines is used to judge it.
"""

from __future__ import annotations

import ast
import builtins
import datetime
import decimal
import fractions
import reprlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from skillweave.tasks.verifiers.code_case import INTERPRETER_PRELUDE, PRELUDE, Case, read_case, top_level_names
from skillweave.tasks.verifiers.code_result import same_result
from skillweave.tools import process_runner, sandbox
from skillweave.tools.process_child import Opaque
from skillweave.tools.sandbox import Host, Limits, Result
from skillweave.tools.source import parse

_ROOM = 4  # a case gets this many times the limits of the program, because it waits for the program
_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_VALUES = (
    *_SCALARS,
    decimal.Decimal,
    fractions.Fraction,
    datetime.date,
    datetime.time,
    datetime.datetime,
    datetime.timedelta,
)
_CONTAINERS = (list, tuple, set, frozenset)

# Saved under other names before the program runs, because the program may redefine `len` or `str`.
_SETUP = """
_sw_held = []
_sw_type, _sw_str, _sw_repr, _sw_len, _sw_bool, _sw_list = type, str, repr, len, bool, list
_sw_int, _sw_float, _sw_abs = int, float, abs
"""
_OPERATIONS = {
    "getitem": "{0}[{1}]",
    "contains": "{1} in {0}",
    "iter": "_sw_list({0})",
    **{name: f"_sw_{name}({{0}})" for name in ("len", "bool", "str", "repr", "int", "float", "abs")},
    "neg": "-{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "truediv": "{0} / {1}",
}
_NORMAL_EXITS = ("SystemExit", "SystemExit: 0", "SystemExit: None")
_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 200


class ProgramSession(Protocol):
    """The interface of a session of either runner."""

    def feed(self, code: str, inputs: Any = None, host: Host | None = None, name: str | None = None) -> Result:
        """Run a text with the names that earlier texts defined."""
        ...


@dataclass(frozen=True)
class Runner:
    """Where programs run (``interpreter`` or ``process``), and within which limits."""

    kind: Literal["interpreter", "process"]
    limits: Limits
    allow_unjailed: bool = False

    def open(self, *, asks: bool = False, output: int = 0) -> AbstractContextManager[ProgramSession]:
        """Open a new session. ``asks``: for a case, which asks the program. ``output``: least characters to keep."""
        times = _ROOM if asks else 1
        limits = Limits(
            seconds=self.limits.seconds * times,
            memory=self.limits.memory * times,
            depth=self.limits.depth,
            output=max(self.limits.output, output),
        )
        if self.kind == "process":
            return process_runner.ProcessSession(limits, allow_unjailed=self.allow_unjailed)
        return sandbox.InterpreterSession(limits, asks=asks)


def program_problem(source: str) -> str | None:
    """Return why a program cannot run, or None: it is not Python, or has a ``return`` outside a function."""
    try:
        tree = parse(source)
    except SyntaxError as error:
        return f"SyntaxError: {error}"
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return):
            return "SyntaxError: 'return' outside function"
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return None


def failure(source: str, case: Any, runner: Runner) -> str | None:
    """Return why ``source`` fails ``case``, or None if it passes."""
    problem = program_problem(source)
    if problem is not None:
        return problem
    if isinstance(case, dict) and "inputs" in case:
        return _printed_failure(source, case["inputs"], case["output"], runner)
    text = case if isinstance(case, str) else case["call"]
    read = read_case(text, top_level_names(source), value=not isinstance(case, str))
    with runner.open() as program:
        program.feed(_SETUP)
        ran = program.feed(source, name="answer")
        if not ran.ok:
            return str(ran.error)
        questions = _Questions(program, runner.limits.seconds - ran.seconds)
        prelude = PRELUDE + (INTERPRETER_PRELUDE if runner.kind == "interpreter" else "")
        with runner.open(asks=True) as session:
            session.feed(prelude, host=questions.answer)
            result = session.feed(read.source, host=questions.answer)
    return questions.broken or _verdict(result, read, case, questions)


def _verdict(result: Result, read: Case, case: Any, questions: _Questions) -> str | None:
    if not result.ok:
        return str(result.error)
    if isinstance(case, str):
        if questions.wrong:
            large = f" (the program made {questions.large})" if questions.large else ""
            return f"AssertionError: an assert of the case does not hold{large}"
        return "AssertionError: no assert of the case was reached" if read.asserts and not questions.judged else None
    if not is_plain(result.value) or not same_result(result.value, case["value"]):
        found = questions.large if isinstance(result.value, Opaque) and questions.large else _described(result.value)
        return f"{case['call']} gives {found}, not {_described(case['value'])}"
    return None


def _printed_failure(source: str, inputs: dict[str, Any], output: str, runner: Runner) -> str | None:
    with runner.open(output=2 * len(output) + 1000) as program:
        result = program.feed(source, inputs, name="__main__")
    # Only the output counts here, so a program may exit by itself without an error.
    if not result.ok and result.error not in _NORMAL_EXITS:
        return str(result.error)
    if not result.cut and _lines(result.output) == _lines(output):
        return None
    more = f" and {result.cut:,} characters more, which are not read" if result.cut else ""
    return f"with {_described(inputs)} it prints {_described(result.output)}{more}, not {_described(output)}"


def _lines(text: str) -> str:
    """The output without spaces at line ends and without white space around it."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _described(value: Any) -> str:
    """A description of a value of any size, in a few hundred characters."""
    try:
        return _SHORTENED.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a large {type(value).__name__}"


class _Questions:
    """Answers the questions of one case by the program's session.

    - ``broken``: why the program cannot answer any more (it used up its ``seconds``, or it died), or None
    - ``large``: a description of the last value that was too large to leave the program, or None
    - ``judged``, ``wrong``: the number of asserts that were reached, and of those that failed
    """

    def __init__(self, program: ProgramSession, seconds: float) -> None:
        self._program = program
        self._seconds = seconds
        self._held = 0
        self.broken: str | None = None
        self.large: str | None = None
        self.judged, self.wrong = 0, 0

    def answer(self, kind: str, *arguments: Any) -> Any:
        """Return plain data, or raise a builtin exception, which the case may catch like the program's own."""
        if kind == "judged":
            self.judged += 1
            self.wrong += not arguments[0]
            return None
        if kind == "same":
            left, right = arguments
            return is_plain(left) and is_plain(right) and same_result(left, right)
        if kind == "value":
            return self._evaluate(arguments[0], {})
        inputs: dict[str, Any] = {}
        if kind == "op":
            name, operands = arguments
            sources = [_unpack(operand, inputs) for operand in operands]
            if name == "setitem":
                self._feed("{}[{}] = {}".format(*sources), inputs)
                return [False, None]
            return self._evaluate(_OPERATIONS[name].format(*[f"({source})" for source in sources]), inputs)
        return self._call(*arguments)

    def _call(self, target: str, positional: Any, named: Any, in_place: bool) -> Any:
        inputs: dict[str, Any] = {}
        arguments: list[tuple[int | str, str]] = [
            *((place, _unpack(item, inputs)) for place, item in enumerate(_items(positional))),
            *((name, _unpack(item, inputs)) for name, item in _pairs(named)),
        ]
        words = ", ".join(source if isinstance(place, int) else f"{place}={source}" for place, source in arguments)
        before = [
            (place, source) for place, source in arguments if type(inputs.get(source)) in (list, dict, set) and in_place
        ]
        reply = self._evaluate(f"{target}({words})", inputs)
        if not before:
            return [reply, []]
        after = self._feed(f"[{', '.join(source for _, source in before)}]", {}).value
        if not isinstance(after, list):
            raise ValueError(f"the program changes an argument to a value that is too large: {_described(after)}")
        changed = [
            [place, new]
            for (place, source), new in zip(before, after, strict=True)
            if type(new) is type(inputs[source]) and is_plain(new) and not same_result(new, inputs[source])
        ]
        return [reply, changed]

    def _evaluate(self, expression: str, inputs: dict[str, Any]) -> list[Any]:
        """Return ``[False, plain data]``, or ``[True, the expression under which the program keeps the object]``."""
        result = self._feed(f"_sw_value = {expression}\n(_sw_type(_sw_value) is _sw_str, _sw_value)", inputs)
        value = result.value
        if type(value) is tuple and len(value) == 2:
            is_text, data = value
            # The interpreter returns functions and modules as texts.
            if is_plain(data) and (type(data) is not str or is_text is True):
                return [False, data]
        elif isinstance(value, Opaque):
            self.large = repr(value)
        self._feed("_sw_held.append(_sw_value)", {})
        self._held += 1
        return [True, f"_sw_held[{self._held - 1}]"]

    def _feed(self, code: str, inputs: dict[str, Any]) -> Result:
        if self.broken is not None:
            raise RuntimeError(self.broken)
        result = self._program.feed(code, inputs)
        self._seconds -= result.seconds
        if self._seconds < 0:
            self.broken = "TimeoutError: the program took too long"
        if result.ok and self.broken is None:
            return result
        kind, _, text = (result.error or self.broken or "").partition(": ")
        if kind in ("TimeoutError", "MemoryError") or not kind.isidentifier():
            self.broken = result.error or self.broken
        error = getattr(builtins, kind, None)
        if isinstance(error, type) and issubclass(error, Exception):
            try:
                raised = error(text)
            except TypeError:  # UnicodeDecodeError and similar classes need more than a text
                raised = ValueError(text)
            raise raised
        raise RuntimeError(result.error or self.broken)


def _items(packed: Any) -> list[Any]:
    """The packed items of a packed tuple or list."""
    kind, content = packed
    return [["data", item] for item in content] if kind == "data" else content


def _pairs(packed: Any) -> list[tuple[str, Any]]:
    """The names and packed values of packed keywords."""
    kind, content = packed
    if kind == "data":
        return [(name, ["data", value]) for name, value in content.items()]
    return [(name, value) for name, value in content]


def _unpack(packed: Any, inputs: dict[str, Any]) -> str:
    """Return the Python text of a packed value, and add its plain data to ``inputs``."""
    kind, content = packed
    if kind == "source":
        return str(content)
    if kind == "data":
        if not is_plain(content):
            raise TypeError(f"this value of the case cannot be passed to the program: {_described(content)}")
        name = f"_sw_a{len(inputs)}"
        inputs[name] = content
        return name
    if kind == "dict":
        return "{" + ", ".join(f"{key!r}: {_unpack(item, inputs)}" for key, item in content) + "}"
    parts = ", ".join(_unpack(item, inputs) for item in content)
    return f"[{parts}]" if kind == "list" else f"({parts},)"


def is_plain(value: Any, depth: int = 100) -> bool:
    """Whether a value consists of data only: numbers, texts, dates, and lists, tuples, sets and dicts of these."""
    kind = type(value)
    if kind in _VALUES:
        return True
    if depth == 0:
        return False
    if kind in _CONTAINERS:
        return all(is_plain(item, depth - 1) for item in value)
    return kind is dict and all(is_plain(key, depth - 1) and is_plain(item, depth - 1) for key, item in value.items())
