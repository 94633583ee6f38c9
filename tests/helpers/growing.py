"""A program that test_values starts: it runs each hostile program with limited memory, and prints its use as JSON."""

from __future__ import annotations

import copy
import json
import resource
import sys
from typing import Any

from helpers.escapes import GROWING
from skillweave.tasks.verifiers import CodeOptions, code
from skillweave.tools import Call, Limits, Toolbox, process_runner, run
from skillweave.tools.builtin import Python

LIMITS = Limits(seconds=0.5, output=1000)
CASES: list[Any] = [{"call": "solve()", "value": [1]}, "assert sorted(solve()) == [1]"]


def peak() -> int:
    """The peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def use(value: Any) -> None:
    """Do with a value what the library, or a caller, may do with it."""
    for attempt in (repr, str, lambda v: json.dumps(v, default=str), copy.deepcopy, lambda v: v == copy.copy(v)):
        try:
            attempt(value)
        except (ValueError, TypeError):  # a number of too many digits, a key that JSON does not have
            continue


def as_tool(program: str) -> int:
    with Toolbox(timeout=60) as box:
        box.register_stateful(lambda: Python(LIMITS).python)
        return len(box.open().call(Call("python", {"code": program})).text)


def as_answer(program: str) -> float:
    body = "".join(f"    {line}\n" for line in program.splitlines()[:-1])
    last = program.splitlines()[-1]
    source = (
        f"def solve():\n{body}    {'' if last.startswith(('raise', 'return', 'while', 'assert')) else 'return '}{last}"
    )
    return code(source, CASES, CodeOptions(seconds=0.5))


def main() -> None:
    run("1"), as_answer("[1]"), as_tool("1")  # load what is loaded only once, so that it does not count
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)
    for name, program in GROWING.items():
        print(json.dumps({"name": name}), flush=True)
        before = peak()
        if sys.argv[1] == "process":
            result = process_runner.run(program, limits=LIMITS)
            use(result.value)
            figures = {"error": len(result.error or ""), "output": len(result.output)}
        else:
            result = run(program, limits=LIMITS)
            use(result.value)
            figures = {"error": len(result.error or ""), "output": len(result.output), "tool": as_tool(program)}
            figures["score"] = as_answer(program)
        print(json.dumps({"name": name, "grown": peak() - before, **figures}), flush=True)


if __name__ == "__main__":
    main()
