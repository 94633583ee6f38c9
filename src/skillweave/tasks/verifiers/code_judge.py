"""Whether a program passes one case: the program and the case run apart, and only plain data goes between them.

The program runs first, whole, in a session that is told its inputs and nothing else. The case runs in a second
session (:mod:`skillweave.tasks.verifiers.code_case`); what it asks of the program is answered here. The program's
session never holds an expected value, and nothing that the program redefines is used to judge it.
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

_ROOM = 4  # a case may take this many times the program's limits: it waits for the program
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

# Kept under names of their own before the program runs, which may call its own things `len` or `str`.
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
_ENDS = ("SystemExit", "SystemExit: 0", "SystemExit: None")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class Session(Protocol):
    """What both runners offer."""

    def feed(self, code: str, inputs: Any = None, host: Host | None = None, name: str | None = None) -> Result:
        """Run a text among the names of those before."""
        ...


@dataclass(frozen=True)
class Runner:
    """Where programs run: ``interpreter`` or ``process``, and within which limits."""

    kind: Literal["interpreter", "process"]
    limits: Limits
    allow_unjailed: bool = False

    def open(self, *, asks: bool = False, output: int = 0) -> AbstractContextManager[Session]:
        """A fresh session; ``asks`` for the one that runs a case, ``output`` for the characters it must keep."""
        times = _ROOM if asks else 1
        limits = Limits(
            seconds=self.limits.seconds * times,
            memory=self.limits.memory * times,
            depth=self.limits.depth,
            output=max(self.limits.output, output),
        )
        if self.kind == "process":
            return process_runner.Session(limits, allow_unjailed=self.allow_unjailed)
        return sandbox.Session(limits, asks=asks)


def program_problem(source: str) -> str | None:
    """Why a program cannot run as a program by itself, or None: no Python, or a ``return`` outside a function."""
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
    """Why ``source`` fails ``case``, or None where it passes."""
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
        asked = _Asked(program, runner.limits.seconds - ran.seconds)
        with runner.open(asks=True) as judge:
            judge.feed(PRELUDE + (INTERPRETER_PRELUDE if runner.kind == "interpreter" else ""), host=asked.answer)
            result = judge.feed(read.source, host=asked.answer)
    return asked.broken or _verdict(result, read, case, asked)


def _verdict(result: Result, read: Case, case: Any, asked: _Asked) -> str | None:
    if not result.ok:
        return str(result.error)
    if isinstance(case, str):
        if asked.wrong:
            large = f" (the program made {asked.large})" if asked.large else ""
            return f"AssertionError: an assert of the case does not hold{large}"
        return "AssertionError: no assert of the case was reached" if read.asserts and not asked.judged else None
    if not is_plain(result.value) or not same_result(result.value, case["value"]):
        found = asked.large if isinstance(result.value, Opaque) and asked.large else _shown(result.value)
        return f"{case['call']} gives {found}, not {_shown(case['value'])}"
    return None


def _printed_failure(source: str, inputs: dict[str, Any], output: str, runner: Runner) -> str | None:
    with runner.open(output=2 * len(output) + 1000) as program:
        result = program.feed(source, inputs, name="__main__")
    # Only what was printed counts here, so that a program may end itself without an error.
    if not result.ok and result.error not in _ENDS:
        return str(result.error)
    if not result.cut and _lines(result.output) == _lines(output):
        return None
    more = f" and {result.cut:,} characters more, which are not read" if result.cut else ""
    return f"with {_shown(inputs)} it prints {_shown(result.output)}{more}, not {_shown(output)}"


def _lines(text: str) -> str:
    """What is printed, without spaces at line ends and without empty space around the whole."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _shown(value: Any) -> str:
    """A value in some hundred characters, whatever its size."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a large {type(value).__name__}"


class _Asked:
    """The questions of one case, answered by the program's session.

    ``broken`` says why the program can answer no more: it took longer than its ``seconds`` in all, or died.
    ``large`` says what the last value was that is too large to leave the program, None where none was.
    """

    def __init__(self, program: Session, seconds: float) -> None:
        self._program = program
        self._seconds = seconds
        self._held = 0
        self.broken: str | None = None
        self.large: str | None = None
        self.judged, self.wrong = 0, 0

    def answer(self, kind: str, *arguments: Any) -> Any:
        """Plain data for the case, or a builtin exception that it may catch as it would the program's own."""
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
        given: list[tuple[int | str, str]] = [
            *((place, _unpack(item, inputs)) for place, item in enumerate(_items(positional))),
            *((name, _unpack(item, inputs)) for name, item in _pairs(named)),
        ]
        words = ", ".join(source if isinstance(place, int) else f"{place}={source}" for place, source in given)
        before = [
            (place, source) for place, source in given if type(inputs.get(source)) in (list, dict, set) and in_place
        ]
        reply = self._evaluate(f"{target}({words})", inputs)
        if not before:
            return [reply, []]
        after = self._feed(f"[{', '.join(source for _, source in before)}]", {}).value
        if not isinstance(after, list):
            raise ValueError(f"the program makes an argument too large: {_shown(after)}")
        changed = [
            [place, new]
            for (place, source), new in zip(before, after, strict=True)
            if type(new) is type(inputs[source]) and is_plain(new) and not same_result(new, inputs[source])
        ]
        return [reply, changed]

    def _evaluate(self, expression: str, inputs: dict[str, Any]) -> list[Any]:
        """``[False, plain data]``, or ``[True, where the program keeps the object]``."""
        result = self._feed(f"_sw_value = {expression}\n(_sw_type(_sw_value) is _sw_str, _sw_value)", inputs)
        value = result.value
        if type(value) is tuple and len(value) == 2:
            is_text, data = value
            # The interpreter shows functions and modules as texts.
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
            except TypeError:  # UnicodeDecodeError and its like want more than a text
                raised = ValueError(text)
            raise raised
        raise RuntimeError(result.error or self.broken)


def _items(packed: Any) -> list[Any]:
    """The packed parts of a packed tuple or list."""
    kind, content = packed
    return [["data", item] for item in content] if kind == "data" else content


def _pairs(packed: Any) -> list[tuple[str, Any]]:
    """The names and packed values of packed keywords."""
    kind, content = packed
    if kind == "data":
        return [(name, ["data", value]) for name, value in content.items()]
    return [(name, value) for name, value in content]


def _unpack(packed: Any, inputs: dict[str, Any]) -> str:
    """The Python text of a packed value; its plain data is added to ``inputs``."""
    kind, content = packed
    if kind == "source":
        return str(content)
    if kind == "data":
        if not is_plain(content):
            raise TypeError(f"this value of the case cannot be handed to the program: {_shown(content)}")
        name = f"_sw_a{len(inputs)}"
        inputs[name] = content
        return name
    if kind == "dict":
        return "{" + ", ".join(f"{key!r}: {_unpack(item, inputs)}" for key, item in content) + "}"
    parts = ", ".join(_unpack(item, inputs) for item in content)
    return f"[{parts}]" if kind == "list" else f"({parts},)"


def is_plain(value: Any, depth: int = 100) -> bool:
    """Whether a value is data all through: numbers, texts, dates, and lists, tuples, sets and dicts of such."""
    kind = type(value)
    if kind in _VALUES:
        return True
    if depth == 0:
        return False
    if kind in _CONTAINERS:
        return all(is_plain(item, depth - 1) for item in value)
    return kind is dict and all(is_plain(key, depth - 1) and is_plain(item, depth - 1) for key, item in value.items())
