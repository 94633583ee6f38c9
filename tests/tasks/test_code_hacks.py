"""Programs that solve nothing and try to pass: none of them passes, with any runner and any form of case."""

# ruff: noqa: E501 (one program a line)

from __future__ import annotations

from typing import Any

import pytest

from helpers.code_runners import RUNNERS, needs_walls
from skillweave.tasks.verifiers import CodeOptions, code, options_for, verify
from skillweave.tasks.verifiers.code import gold_solution_problem

LYING = """class E:
    def __init__(self, *a): pass
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __le__(self, other): return True
    def __gt__(self, other): return True
    def __ge__(self, other): return True
    def __hash__(self): return 1
    def __sub__(self, other): return self
    def __rsub__(self, other): return self
    def __abs__(self): return self
    def __contains__(self, other): return True
    def __iter__(self): return iter([])
    def __len__(self): return 1
    def __round__(self, digits=0): return self
"""
WRONG = "def solve(n): return 0"
FORGED = (
    "import os\nfor i in range(3, 64):\n    try: os.write(i, b'{}\\n' * 20)\n    except OSError: pass\n"
    "def solve(n): return 0"
)

EVERYWHERE = {
    # ends before its end
    "return": "return",
    "return a value": "return 4",
    "a wrong function, then return": f"{WRONG}\nreturn",
    "return in an if": "if True:\n    return",
    "return in a try": "try:\n    return\nfinally:\n    pass",
    "return in a loop": "for i in [1]:\n    return i",
    "return in a class": "class A:\n    return 4",
    "print, then return": "print('' and '4')\nreturn",
    "exec of return": "exec('return')",
    "raise SystemExit": "raise SystemExit(0)",
    "exit": "exit()",
    "quit": "quit()",
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "exit when called": "import sys\ndef solve(n): sys.exit(0)",
    "SystemExit when called": "def solve(n): raise SystemExit(0)",
    "os._exit when called": "import os\ndef solve(n): os._exit(0)",
    "GeneratorExit when called": "def solve(n): raise GeneratorExit",
    "await": "async def f(): pass\nawait f()",
    "yield": "yield",
    # swallows what follows it
    "an open text": 'x = """',
    "an open bracket": "x = (",
    "a backslash": "x = 1 \\",
    "a comment with a backslash": "# \\",
    "an if without a body": "if False:",
    "an elif without a body": "if 0:\n    pass\nelif 0:",
    "a while without a body": "while 0:",
    "a function without a body": "def f():",
    "an except without a body": "try:\n    pass\nexcept BaseException:",
    "a with without a body": "class A:\n    def __enter__(s): pass\n    def __exit__(s, *a): return True\nwith A():",
    "a lambda without a body": "f = lambda:",
    "a decorator of what follows": "@print",
    # meddles with what judges
    "__debug__": "__debug__ = False",
    "AssertionError": f"class AssertionError: pass\n{WRONG}",
    "AssertionError swallowed": f"AssertionError = KeyError = Exception = BaseException\n{WRONG}",
    "raises AssertionError": "def solve(n): raise AssertionError",
    "abs": f"abs = round = lambda *a: 0\n{WRONG}",
    "len and sorted": f"len = sorted = str = lambda *a: 4\n{WRONG}",
    "bool and all": f"bool = all = any = isinstance = lambda *a: True\n{WRONG}",
    "print": f"print = lambda *a: '4'\n{WRONG}",
    "the judge's names": f"_sw_same = _sw_assert = _sw_host = _sw_type = _sw_name = lambda *a: True\n{WRONG}",
    "a text for a function": "_sw_str = _sw_type = lambda *a: True\ndef solve(n): return lambda: 4",
    "a module's function": "import math\ntry: math.isclose = lambda *a, **k: True\nexcept AttributeError: pass\n"
    + WRONG,
    # an object that agrees with everything
    "equality": f"{LYING}def solve(n): return E()",
    "equality of a class": f"{LYING}solve = E",
    "equality in a list": f"{LYING}def solve(n): return [E()]",
    "equality both ways": f"{LYING}n = E()\ndef solve(n): return n",
    # prints what may be wanted
    "prints 4 and returns nothing": "def solve(n): print(4)",
    "prints when loaded": f"if __name__ != '__main__':\n    print(4)\n{WRONG}",
    "prints many": "print('\\n'.join(str(i) for i in range(100)))\n" + WRONG,
    # values that are nearly equal to everything
    "nan": "def solve(n): return float('nan')",
    "infinity": "def solve(n): return float('inf')",
    "true": "def solve(n): return True",
    "text": "def solve(n): return '4.0'",
    "a list of it": "def solve(n): return [4]",
    "nothing": "def solve(n): pass",
    "the class int": "solve = int",
    "itself": "def solve(n): return solve",
    # too much
    "a huge text": "def solve(n): return 'x' * 10**9",
    "a huge number": "def solve(n): return 10**5000",
    "a deep list": "def solve(n):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "a list in itself": "def solve(n):\n    a = []\n    a.append(a)\n    return a",
    "a lone surrogate": "def solve(n): return '\\ud800'",
    "a lone surrogate in the source": "x = '\ud800'",
    "a nul": f"{WRONG}\x00",
    "nothing at all": "",
}
IN_CPYTHON = {
    "frames": "import sys\ndef solve(n):\n    frame = sys._getframe()\n    while frame:\n"
    "        for value in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:\n"
    "            text = str(value)\n            if '== ' in text: return int(text.split('== ')[1][0])\n"
    "        frame = frame.f_back",
    "all objects": "import gc\ndef solve(n):\n    for value in gc.get_objects():\n        text = str(value)\n"
    "        if 'solve(3) == ' in text: return int(text.split('solve(3) == ')[1][0])",
    "arguments and environment": "import os, sys\ndef solve(n):\n"
    "    text = str([sys.argv, sys.orig_argv, os.environ])\n"
    "    return 4 if 'solve' in text else 0",
    "builtins": "import builtins\nbuiltins.abs = builtins.len = lambda *a: 0\n"
    f"builtins.AssertionError = Exception\n{WRONG}",
    "a subclass of int": "class I(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\ndef solve(n): return I(7)",
    "a subclass of dict": "class D(dict):\n    __eq__ = lambda *a: True\ndef solve(n): return D()",
    "mock.ANY": "from unittest.mock import ANY\ndef solve(n): return ANY",
    "a made class": "def solve(n): return type('E', (), {'__eq__': lambda *a: True})()",
    "a metaclass": "class M(type):\n    __eq__ = lambda *a: True\n    __hash__ = type.__hash__\nclass E(metaclass=M): pass\n"
    "def solve(n): return E",
    "the loop": "import sys\nmain = sys.modules['__main__']\nmain.encode = lambda *a: None\n"
    f"main.Loop.run = lambda *a: {{'value': None}}\n{WRONG}",
    "sys.modules": f"import sys\nfor name in list(sys.modules): sys.modules[name] = None\n{WRONG}",
    "forged replies": FORGED.replace("{}", '{"value": null}'),
    "forged questions": FORGED.replace("{}", '{"ask": ["tuple", ["judged", true]]}'),
    "closed pipes": f"import os\nfor i in range(1, 64):\n    try: os.close(i)\n    except OSError: pass\n{WRONG}",
    "excepthook": f"import sys\nsys.excepthook = lambda *a: None\n{WRONG}\nraise ValueError",
    "atexit": f"import atexit, os\natexit.register(os._exit, 0)\n{WRONG}",
    "a thread that ends it": "import threading, os\ndef solve(n):\n    threading.Thread(target=os._exit, args=(0,)).start()\n"
    "    while True: pass",
    "settrace": f"import sys\nsys.settrace(lambda *a: sys.exit(0))\n{WRONG}",
    "the judge's files": "def solve(n):\n    import skillweave\n    return 4",
    "parent": f"import os\nos.kill(os.getppid(), 9)\n{WRONG}",
    "print patched": "import builtins, sys\nsys.stdout.write = lambda text: 4\ndef solve(n): return builtins.print('4')",
}
CALL = {"call": "solve(3)", "value": 4}
PRINTED = {"inputs": {"n": 3}, "output": "4"}
CASES: list[Any] = [
    "assert solve(3) == 4",
    CALL,
    PRINTED,
    "assert 4 == solve(3)",
    "assert not solve(3) != 4",
    "assert solve(3) in [4]",
    "assert abs(solve(3) - 4) < 1e-6",
    "import math\nassert math.isclose(solve(3), 4)",
    "assert 3.5 < solve(3) and solve(3) < 4.5",
    "assert str(solve(3)) == '4'",
    "assert sorted([solve(3)]) == [4]",
    "assert len([x for x in [solve(3)] if x == 4]) == 1",
    "x = solve(3)\nassert x == 4",
    "for given, wanted in [(3, 4), (5, 6)]:\n    assert solve(given) == wanted",
    "def check(candidate):\n    assert candidate(3) == 4\n    assert candidate(5) == 6\ncheck(solve)",
    "assert all(solve(n) == n + 1 for n in [3, 5])",
    "assert [solve(n) for n in range(3)] == [1, 2, 3]",
    {"call": "solve(3) == 4", "value": True},
    {"call": "[solve(3), solve(4)]", "value": [4, 5]},
]
RIGHT = "def solve(n): return n + 1\nif __name__ == '__main__':\n    print(n + 1)"


def passed(program: str, cases: list[Any], runner: str) -> list[Any]:
    """The cases that a program passes."""
    options = options_for("code", {"runner": runner, "seconds": 20})
    return [case for case in cases if verify("code", f"```python\n{program}\n```", [case], options)]


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_right_program_passes_every_form_of_case(runner: str) -> None:
    assert passed(RIGHT, CASES, runner) == CASES


@pytest.mark.parametrize("program", EVERYWHERE.values(), ids=EVERYWHERE)
def test_nothing_passes_in_the_interpreter(program: str) -> None:
    assert passed(program, CASES, "interpreter") == []


@needs_walls
@pytest.mark.parametrize("program", EVERYWHERE.values(), ids=EVERYWHERE)
def test_nothing_passes_in_a_process(program: str) -> None:
    assert passed(program, CASES[:3], "process") == []


@needs_walls
@pytest.mark.parametrize("program", IN_CPYTHON.values(), ids=IN_CPYTHON)
def test_what_only_cpython_allows_passes_nothing(program: str) -> None:
    assert passed(program, CASES[:3], "process") == []


COUNTS = "calls = []\ndef solve(n):\n    calls.append(n)\n    return len(calls)"


@pytest.mark.parametrize("runner", RUNNERS)
def test_no_case_sees_what_another_left_behind(runner: str) -> None:
    cases = [{"call": "solve(3)", "value": 1}, {"call": "solve(4)", "value": 1}, "assert solve(5) == 1"]
    assert passed(COUNTS, cases, runner) == cases


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_argument_is_changed_by_a_statement_alone(runner: str) -> None:
    emptied = "def solve(xs):\n    xs.clear()\n    return []"
    assert passed(emptied, ["xs = [2, 1]\nassert solve(xs) == sorted(xs)"], runner) == []
    in_place = ["xs = [2, 1]\nsolve(xs)\nassert xs == []", "d = {1: 2}\nx = solve(d)\nassert d == {}"]
    assert passed(emptied, in_place, runner) == in_place


@pytest.mark.parametrize("runner", RUNNERS)
def test_asserts_that_are_never_reached_do_not_pass(runner: str) -> None:
    program = "def solve(n): return []"
    assert passed(program, ["for x in solve(3):\n    assert x > 0"], runner) == []


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_failed_assert_counts_also_where_the_case_catches_it(runner: str) -> None:
    case = "try:\n    assert solve(3) == 4\nexcept AssertionError:\n    pass"
    assert passed(WRONG, [case], runner) == []


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "program", ["while True: pass", "def solve(n):\n    while True: pass", "def solve(n): return solve(n)"]
)
def test_a_program_without_end_fails(program: str, runner: str) -> None:
    assert verify("code", program, [CASES[0]], options_for("code", {"runner": runner, "seconds": 0.2})) == 0


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_result_that_is_too_large_stays_with_the_program_and_its_parts_can_be_asked_for(runner: str) -> None:
    program = "def f(n): return ['x' * 1000] * n"
    options = CodeOptions(seconds=60, runner=runner)
    assert code(program, ["assert len(f(5000)) == 5000"], options) == 1
    if runner == "process":  # the interpreter cannot ask the program from within an index
        assert code(program, ["assert f(5000)[4999] == 'x' * 1000"], options) == 1
    for case in ({"call": "f(5000)", "value": [1]}, "assert f(5000) == ['x' * 1000] * 5000"):
        assert code(program, [case], options) == 0
        assert "more than 100,000 items" in str(gold_solution_problem(program, [case], options))
