"""The verifier ``code``: the share of a row's cases that an answer's program passes."""

from __future__ import annotations

import builtins
import keyword
from typing import Any, Literal

from pydantic import Field

from skillweave.config import Config
from skillweave.errors import UserError
from skillweave.tasks.verifiers.code_block import extract_code
from skillweave.tasks.verifiers.code_case import read_case, why_it_proves_nothing
from skillweave.tasks.verifiers.code_run import Runner, failure, is_plain
from skillweave.tools.sandbox import Limits

_DEPTH = 1000  # nested calls, as in CPython by default
_DIGITS = 4300  # the longest integer that Python converts to text


class CodeOptions(Config):
    """``code``: the share of the row's cases that the answer's program passes."""

    seconds: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds for the program and for everything that one case asks of it",
    )
    memory: int = Field(default=64 * 2**20, gt=0, description="Bytes for the values of the program.")
    runner: Literal["interpreter", "process"] = Field(
        default="interpreter",
        description="`interpreter`: a subset of Python without access to anything. `process`: CPython in a "
        "sandboxed process.",
    )
    allow_unjailed: bool = Field(
        default=False,
        description="whether `process` may run if the system cannot isolate it from network, files and other processes",
    )


def code(answer: str, gold: list[Any], options: CodeOptions) -> float:
    """Return the share of the cases that the answer's program passes; ``gold`` is the row's ``cases``.

    A case is one of these. The program is started again for each case.

    - ``{"call": "solve(3)", "value": 4}``: the value is compared by
      :func:`skillweave.tasks.verifiers.code_result.same_result`
    - ``{"inputs": {"n": 3}, "output": "4"}``: the output is what the program prints
    - a text such as ``"assert solve(3) == 4"``, which must run to its end
    """
    source = extract_code(answer, _names(gold))
    runner = _runner(options)
    return sum(_passes(source, case, runner) for case in gold) / len(gold)


def _passes(source: str, case: Any, runner: Runner) -> bool:
    try:
        return failure(source, case, runner) is None
    except RecursionError:  # the result is nested too deeply to be compared
        return False


def _runner(options: CodeOptions) -> Runner:
    limits = Limits(seconds=options.seconds, memory=options.memory, depth=_DEPTH)
    return Runner(options.runner, limits, options.allow_unjailed)


def _names(cases: list[Any]) -> frozenset[str]:
    """The names that the cases take from the program."""
    texts = [case if isinstance(case, str) else case.get("call", "") for case in cases]
    return frozenset().union(*(read_case(text).roots for text in texts))


def gold_solution_problem(answer: str, cases: list[Any], options: CodeOptions) -> str | None:
    """Return why a row's own answer does not pass the row's cases, or None. Used when a task is read or checked.

    The text names the case and the error. If the interpreter does not have something that CPython has, the text says so
    and recommends ``runner: process``. ``cases`` must have passed :func:`cases_problem`. It takes about a millisecond
    per case with the interpreter and 0.1 s with ``runner: process``.
    """
    source = extract_code(answer, _names(cases))
    for number, case in enumerate(cases, 1):
        try:
            problem = failure(source, case, _runner(options))
        except RecursionError:
            problem = "RecursionError: the result is nested too deeply to be compared"
        if problem is None:
            continue
        message = f"the answer of this row does not pass its own case {number}: {problem}"
        return message + (_advice(source, case, options, problem) if options.runner == "interpreter" else "")
    return None


def _advice(source: str, case: Any, options: CodeOptions, problem: str) -> str:
    """Advice for a program that fails in the interpreter: if it passes in CPython, the interpreter is the reason."""
    try:
        in_cpython = failure(source, case, _runner(options.model_copy(update={"runner": "process"})))
    except UserError:  # this system cannot sandbox a process
        unsupported = problem.startswith(("NotImplementedError", "ModuleNotFoundError", "ImportError"))
        return (
            ". The interpreter does not support this part of Python: run the task in CPython (runner: process)"
            if unsupported
            else ""
        )
    if in_cpython is None:
        return (
            ". It passes in CPython, so it needs a part of Python that the interpreter does not support: "
            "set options: {runner: process}"
        )
    return ""


def cases_problem(cases: Any) -> str | None:
    """Return why no program could pass ``cases``, or why every program would pass one of them; else None."""
    if not isinstance(cases, list) or not cases:
        return "verifier 'code' needs a key 'cases': a list of at least one case"
    for number, case in enumerate(cases, 1):
        problem = _case_problem(case)
        if problem:
            return f"case {number} {problem}"
    return None


def _case_problem(case: Any) -> str | None:
    keys = set(case) if isinstance(case, dict) else set()
    if isinstance(case, str):
        return _text_problem(case, value=False)
    if keys == {"call", "value"} and isinstance(case["call"], str):
        return _text_problem(case["call"], value=True) or _value_problem("value", case["value"])
    if keys == {"inputs", "output"} and isinstance(case["inputs"], dict) and isinstance(case["output"], str):
        return _inputs_problem(case["inputs"]) or _value_problem("output", case["output"])
    return (
        "is neither a text like 'assert f(1) == 2' nor "
        '{"call": "f(1)", "value": 2} nor {"inputs": {"n": 1}, "output": "2"}'
    )


def _text_problem(text: str, *, value: bool) -> str | None:
    if not text.strip():
        return "is empty: write Python such as 'assert f(1) == 2'"
    try:
        text.encode()
        read_case(text, value=value)
        nothing = why_it_proves_nothing(text, value=value)
    except SyntaxError as error:
        return f"is not Python: {error.msg}, in {text!r:.80}"
    except UnicodeEncodeError:
        return f"contains a lone surrogate, which Python source cannot contain: {text!r:.80}"
    return None if nothing is None else f"{nothing}, in {text!r:.80}"


def _inputs_problem(inputs: dict[Any, Any]) -> str | None:
    for name in inputs:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            return f"has the input {name!r}, which is not a name in Python: write a name such as 'n'"
        if name.startswith("__"):
            return f"has the input '{name}', a name that Python reserves: give it another name"
        if hasattr(builtins, name):
            return f"has the input '{name}', which would hide Python's own {name}: give it another name"
    return _value_problem("inputs", inputs)


def _value_problem(key: str, value: Any) -> str | None:
    """Why a value of the case cannot be passed to the program's session, or be its result."""
    try:
        if not is_plain(value):
            return f"has more than plain data in {key!r}: write numbers, texts, lists and objects"
        parts = [value]
        while parts:
            part = parts.pop()
            if isinstance(part, str):
                part.encode()
            elif isinstance(part, int) and part.bit_length() > _DIGITS * 3.32:
                return f"has a whole number of more than {_DIGITS} digits in {key!r}, which no program can print"
            elif isinstance(part, dict):
                parts += [*part.keys(), *part.values()]
            elif isinstance(part, list | tuple | set | frozenset):
                parts += part
    except UnicodeEncodeError:
        return f"has a lone surrogate in {key!r}, which no text of a program can contain"
    except RecursionError:
        return f"has {key!r} nested too deeply"
    return None
