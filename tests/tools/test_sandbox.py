"""The sandbox keeps its limits, lets nothing out, and says what went wrong."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest

from helpers.escapes import OUTSIDE, TRICKS
from skillweave.errors import UserError
from skillweave.tools import Limits, Result, run

QUICK = Limits(seconds=0.3, memory=20 * 2**20, depth=100, output=500)
"""For what has no end: the time runs out on every machine."""
ROOMY = Limits(seconds=120, memory=20 * 2**20, depth=100, output=500)
"""For what ends by another limit: on a slow machine too, that one is met first."""


def test_value_of_the_last_expression_and_inputs() -> None:
    result = run("def double(x):\n    return 2 * x\ndouble(n) + 1", {"n": 20})
    assert (result.ok, result.value, result.error, result.output) == (True, 41, None, "")
    assert run("x = 1").value is None
    assert run("[1, (2, 3), {'a': None}]").value == [1, (2, 3), {"a": None}]


def test_printed_text_is_kept_beside_the_value() -> None:
    result = run("print('one')\nprint('two', 3)\n'done'")
    assert result.output == "one\ntwo 3\n"
    assert result.value == "done"


def test_an_exception_is_named_and_earlier_output_kept() -> None:
    result = run("print('before')\n1 / 0")
    assert not result.ok
    assert result.error == "ZeroDivisionError: division by zero"
    assert result.output == "before\n"
    assert result.value is None


@pytest.mark.parametrize("code", ["x = (", "def f(:", "(" * 4000, "ok\x00", "'\ud800'", "-" * 100_000 + "1"])
def test_text_that_is_no_code(code: str) -> None:
    result = run(code, limits=ROOMY)
    assert not result.ok
    assert result.error


@pytest.mark.parametrize(
    "code",
    [
        "while True:\n    pass",
        "for _ in iter(int, 1): pass",
        "import itertools\nsum(itertools.count())",
        "max(range(10**13))",
        "import math\nmath.factorial(10**6)",
        # Its own end is nothing that code can catch, or put off.
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "def f():\n    try:\n        while True: pass\n    finally:\n        while True: pass\nf()",
        "class A:\n    def __eq__(self, other):\n        while True: pass\nA() == A()",
        "def f():\n    try: f()\n    except RecursionError: f()\nf()",
    ],
)
def test_an_endless_loop_stops_at_the_time_limit(code: str) -> None:
    result = run(code, limits=QUICK)
    assert not result.ok
    assert result.error is not None
    assert result.error.startswith("TimeoutError")
    assert result.seconds > 0.25


@pytest.mark.parametrize(
    "code",
    [
        "[0] * 10**9",
        "'a' * 10**12",
        "a = []\nwhile True: a.append('x' * 1000)",
        "10**10**8",
        "1 << 10**9",
        "list(range(10**8))",
        "set(range(10**8))",
        "bytes(10**10)",
        "a = {}\ni = 0\nwhile True:\n    a[i] = i\n    i += 1",
        "a = 'a'\nwhile True: a += a",
        "a = [1]\nwhile True: a.extend(a)",
        "('a' * 10**5).replace('a', 'b' * 10**5)",
        "','.join(['x' * 1000] * 10**6)",
        "'a'.ljust(10**10)",
        "f'{1:>1000000000}'",
        "'%1000000000d' % 1",
        "import re\nre.sub('', 'b' * 10**6, 'a' * 10**4)",
        "import itertools\nlist(itertools.product(range(1000), repeat=4))",
        "print('x' * 10**8)",
    ],
)
def test_a_memory_bomb_is_refused(code: str) -> None:
    result = run(code, limits=ROOMY)
    assert not result.ok
    assert result.error is not None
    assert result.error.startswith("MemoryError")


def test_deep_recursion_is_refused() -> None:
    code = "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n"
    assert run(code + "f(50)", limits=ROOMY).value == 50
    result = run(code + "f(1000)", limits=ROOMY)
    assert result.error is not None
    assert result.error.startswith("RecursionError")


@pytest.mark.parametrize(
    "code",
    [
        "def f(): return g()\ndef g(): return f()\nf()",
        "f = lambda: f()\nf()",
        "class A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        "import json\na = []\nfor _ in range(100000): a = [a]\njson.dumps(a)",
        "a = ()\nfor _ in range(100000): a = (a,)\nhash(a)",
    ],
)
def test_recursion_by_other_ways_is_refused(code: str) -> None:
    result = run(code, limits=ROOMY)
    assert result.error is not None
    assert result.error.startswith("RecursionError")


@pytest.mark.parametrize("code", ["a = []\nfor _ in range(100000): a = [a]\na", "a = []\na.append(a)\na"])
def test_a_value_without_bottom_comes_out_and_can_be_shown(code: str) -> None:
    result = run(code, limits=ROOMY)
    assert result.ok
    assert len(repr(result.value)) < 10_000


@pytest.mark.parametrize("code", OUTSIDE)
def test_files_processes_and_network_are_out_of_reach(code: str) -> None:
    assert not run(code, limits=ROOMY).ok


def test_a_search_for_files_finds_none() -> None:
    assert run("from pathlib import Path\nlist(Path('/').glob('*'))", limits=ROOMY).value == []


@pytest.mark.parametrize("code", TRICKS)
def test_attribute_tricks_lead_nowhere(code: str) -> None:
    result = run(code, limits=ROOMY)
    assert not result.ok
    assert result.error is not None
    assert result.error.startswith(("AttributeError", "NameError", "ModuleNotFoundError"))


def test_a_sandbox_file_is_no_file_here(tmp_path) -> None:
    target = tmp_path / "out.txt"
    assert not run(f"open({str(target)!r}, 'w').write('x')", limits=ROOMY).ok
    assert not target.exists()


def test_output_is_cut_and_the_run_goes_on() -> None:
    result = run("for i in range(2000):\n    print('y' * 9)\n'end'", limits=ROOMY)
    assert result.value == "end"
    assert result.output == ("y" * 9 + "\n") * 50


def test_output_without_end_is_cut_and_ended() -> None:
    result = run("while True:\n    print('y' * 99)", limits=QUICK)
    assert not result.ok
    assert result.output == ("y" * 99 + "\n") * 5
    assert run("print('z' * 10**6)", limits=ROOMY).output == "z" * 500


def test_sleep_costs_nothing() -> None:
    result = run("import time\ntime.sleep(1000)\n1", limits=ROOMY)
    assert result.value == 1
    assert result.seconds < 500


def test_the_same_code_gives_the_same_result_and_no_state_is_left() -> None:
    code = "import random\nrandom.random()"
    assert run(code).value == run(code).value
    run("left = 1")
    assert run("left").error == "NameError: name 'left' is not defined"


def test_an_input_that_cannot_enter_is_the_callers_error() -> None:
    with pytest.raises(TypeError, match="cannot enter the sandbox"):
        run("x", {"x": object()})


def test_a_killed_worker_is_replaced() -> None:
    # The allocator of the worker ends it outright here; the next run must find a fresh one.
    assert not run("x = 1;" * 200_000, limits=ROOMY).ok
    assert run("1 + 1", limits=ROOMY).value == 2


def test_threads_share_the_pool() -> None:
    results: list[Result] = []
    threads = [threading.Thread(target=lambda n=n: results.append(run("n * n", {"n": n}))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.value for result in results) == [n * n for n in range(12)]


def _in_a_fork(queue) -> None:
    try:
        queue.put(run("6 * 7").value)
    except UserError as error:
        queue.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_rather_than_left_to_wait() -> None:
    assert run("1").ok
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_a_fork, args=(queue,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert "forked" in queue.get()
    assert run("2").value == 2
