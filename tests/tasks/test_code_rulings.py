"""Typical answers of people and models, each with the score that a person would give."""

# ruff: noqa: E501 (one row of a table a line)

from __future__ import annotations

from typing import Any

import pytest

from helpers.code_runners import RUNNERS, needs_walls
from skillweave.tasks.verifiers import extract_code, gold_problem, options_for, verify
from skillweave.tasks.verifiers.code import CodeOptions, gold_solution_problem
from skillweave.tasks.verifiers.code_result import same_result

F = "def add(a, b):\n    return a + b\n"
BAD = "def add(a, b):\n    return a - b\n"
ADD: list[Any] = [{"call": "add(2, 3)", "value": 5}, "assert add(-1, 1) == 0"]


def fenced(code: str, tag: str = "python") -> str:
    return f"```{tag}\n{code}```"


def indented(text: str, by: str = "   ") -> str:
    return "".join(by + line for line in text.splitlines(True))


# name: (answer, cases, ruling), for both runners
BOTH: dict[str, tuple[str, list[Any], float]] = {
    "the bare program": (F, ADD, 1),
    "a fenced program": (fenced(F), ADD, 1),
    "py": (fenced(F, "py"), ADD, 1),
    "Python3": (fenced(F, "Python3"), ADD, 1),
    "python with a title": (fenced(F, 'python title="add.py"'), ADD, 1),
    "pandoc's braces": (fenced(F, "{.python .numberLines}"), ADD, 1),
    "a file name": (fenced(F, "add.py"), ADD, 1),
    "a space before the tag": (fenced(F, " python"), ADD, 1),
    "no tag": (fenced(F, ""), ADD, 1),
    "tildes": (f"~~~python\n{F}~~~", ADD, 1),
    "four backticks": (f"````python\n{F}````", ADD, 1),
    "four backticks around three in a text": (f"````python\n{F}note = '''\n```\n'''\n````", ADD, 1),
    "cut off": (f"Here it is:\n```python\n{F}", ADD, 1),
    "cut off in the middle": ("```python\ndef add(a, b):\n    return a +", ADD, 0),
    "windows lines": (fenced(F).replace("\n", "\r\n"), ADD, 1),
    "prose around": (f"Sure! Here is `add`:\n\n{fenced(F)}\n\nIt adds **two** numbers.", ADD, 1),
    "prose without a fence": (f"Sure, here is the function:\n\n{F}\nIt adds two numbers (both of them).", ADD, 1),
    "a tag instead of a fence": (f"<answer>\n{F}</answer>", ADD, 1),
    "prose without a fence, wrong": (f"Sure, here is the function:\n{BAD}", ADD, 0),
    "a helper in a block of its own": (
        f"{fenced('def g(a, b):' + chr(10) + '    return a + b' + chr(10))}\nThen:\n"
        f"{fenced('def add(a, b):' + chr(10) + '    return g(a, b)' + chr(10))}", ADD, 1),
    "a byte order mark": (f"\N{ZERO WIDTH NO-BREAK SPACE}{F}", ADD, 1),
    "ends itself when it has printed": ("print(5)\nraise SystemExit", [{"inputs": {}, "output": "5"}], 1),
    "ends itself with an error": ("print(5)\nraise SystemExit(1)", [{"inputs": {}, "output": "5"}], 0),
    "in a list": (f"1. First:\n\n{indented(fenced(F))}\n\n2. Done.", ADD, 1),
    "on the line of a list's item": (f"- ```python\n{indented(F, '  ')}  ```", ADD, 1),
    "all of it indented": (indented(F, "    "), ADD, 1),
    "tabs": (fenced(F.replace("    ", "\t")), ADD, 1),
    "a wrong one, then a right one": (f"{fenced(BAD)}\nThat subtracts. Fixed:\n{fenced(F)}", ADD, 1),
    "a right one, then a wrong one": (f"{fenced(F)}\nBetter:\n{fenced(BAD)}", ADD, 0),
    "a wrong one, then a right one, no tags": (f"{fenced(BAD, '')}\nFixed:\n{fenced(F, '')}", ADD, 1),
    "an example of use after it": (f"{fenced(F)}\nUsage:\n{fenced('print(add(1, 2))' + chr(10))}", ADD, 1),
    "its output after it": (f"{fenced(F)}\nOutput:\n{fenced('5' + chr(10), '')}", ADD, 1),
    "its output after it, no tags": (f"{fenced(F, '')}\nOutput:\n{fenced('5' + chr(10), '')}", ADD, 1),
    "its output at once, no tags": (f"{fenced(F, '')}\n{fenced('5' + chr(10), '')}", ADD, 1),
    "an installation before it": (f"{fenced('pip install x' + chr(10), 'bash')}\n{fenced(F)}", ADD, 1),
    "an installation after it": (f"{fenced(F)}\nRun it:\n{fenced('python add.py' + chr(10), 'bash')}", ADD, 1),
    "JSON after it": (f"{fenced(F)}\n{fenced('[5]' + chr(10), 'json')}", ADD, 1),
    "a shell block alone": (fenced("echo 5\n", "bash"), ADD, 0),
    "another language": (fenced("function add(a, b) { return a + b }\n", "javascript"), ADD, 0),
    "a session": (fenced(">>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3\n"), ADD, 1),
    "type hints": (fenced("from typing import Optional\ndef add(a: int, b: int = 0) -> Optional[int]:\n    return a + b\n"), ADD, 1),
    "a docstring": (fenced('def add(a, b):\n    """Return the sum.\n\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n'), ADD, 1),
    "a fence behind a text": (f"Answer:```python\n{F}```", ADD, 1),
    "a text behind the fence": (f"{fenced(F)} This adds.", ADD, 1),
    "what not to write": (f"{fenced(F)}\nDo not write it like this:\n{fenced(BAD)}", ADD, 1),
    "a mistake, then a right one": (f"A common mistake is:\n{fenced(F)}\nThe program:\n{fenced(BAD)}", ADD, 0),
    "a right one, then a mistake": (f"The program:\n{fenced(F)}\nA common mistake is:\n{fenced(BAD)}", ADD, 1),
    "without the mistake": (f"A first try:\n{fenced(BAD)}\nHere is the code without the mistake:\n{fenced(F)}", ADD, 1),
    "what to use instead": (f"A first try:\n{fenced(BAD)}\nDon't use the minus sign, use this instead:\n{fenced(F)}", ADD, 1),
    "what is not used": (f"A first try:\n{fenced(BAD)}\nWe do not use extra memory here:\n{fenced(F)}", ADD, 1),
    "a lambda": ("add = lambda a, b: a + b", ADD, 1),
    "prints on its way": (f"{F}print(add(1, 1))\nprint('5')", ADD, 1),
    "prints when called": ("def add(a, b):\n    print(a, b)\n    return a + b", ADD, 1),
    "prints instead of returning": ("def add(a, b):\n    print(a + b)", ADD, 0),
    "a main guard": (f"{F}if __name__ == '__main__':\n    print(add(int(input()), int(input())))\n", ADD, 1),
    "asserts of its own": (f"{F}assert add(1, 1) == 2", ADD, 1),
    "a false assert of its own": (f"{F}assert add(1, 1) == 3", ADD, 0),
    "another name": (F.replace("add", "plus"), ADD, 0),
    "right for one case": ("def add(a, b):\n    return 5", ADD, 0.5),
    "a builtin's name, under test": ("def sum(a, b):\n    return a + b", ["assert sum(10, 15) == 25"], 1),
    "a variable called list": ("list = [1, 2]\ndef f():\n    return list", [{"call": "f()", "value": [1, 2]}], 1),
    "class Solution": (
        fenced("class Solution:\n    def twoSum(self, nums, target):\n        return [0, 1]\n"),
        [{"call": "Solution().twoSum([2, 7], 9)", "value": [0, 1]}, "assert Solution().twoSum([2, 7], 9) == [0, 1]"],
        1,
    ),
    "a class with state": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n"
        "    def pop(self):\n        return self.items.pop()\n    def size(self):\n        return len(self.items)",
        ["s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2\nassert s.size() == 1\nassert s.items == [1]"],
        1,
    ),
    "a class in a loop": (
        "class C:\n    def __init__(self):\n        self.n = 0\n    def up(self, by=1):\n        self.n += by\n        return self.n",
        ["c = C()\nfor i in range(3):\n    c.up(by=2)\nassert c.n == 6", {"call": "C().up()", "value": 1}],
        1,
    ),
    "changes its argument": ("def f(xs):\n    xs.sort()", ["a = [3, 1]\nf(a)\nassert a == [1, 3]"], 1),
    "changes and returns": (
        "def f(xs):\n    xs[:] = [1, 2, 0]\n    return 2",
        ["a = [1, 1, 2]\nk = f(a)\nassert a[:k] == [1, 2]"],
        1,
    ),
    "takes a function": (
        "def f(g, x):\n    return g(x)",
        ["assert f(lambda x: x + 1, 3) == 4", "assert f(len, 'abc') == 3", "assert f(f=1) if False else True"],
        1,
    ),
    "gives a function": ("def f(n):\n    return lambda x: x + n", ["g = f(2)\nassert g(3) == 5", "assert f(2)(3) == 5"], 1),
    "handed to map": (F, ["assert list(map(add, [1, 2], [3, 4])) == [4, 6]"], 1),
    "handed to filter": ("def odd(n):\n    return n % 2 == 1", ["assert list(filter(odd, [1, 2, 3])) == [1, 3]"], 1),
    "raises as it should": (
        "def f(n):\n    if n < 0:\n        raise ValueError('negative')\n    return n",
        ["try:\n    f(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False"],
        1,
    ),
    "does not raise as it should": (
        "def f(n):\n    return n",
        ["try:\n    f(-1)\nexcept ValueError:\n    assert True\nelse:\n    assert False"],
        0,
    ),
    "HumanEval's check": (
        fenced("def near(xs, t):\n    return any(abs(a - b) < t for i, a in enumerate(xs) for b in xs[i + 1:])\n"),
        ["METADATA = {'a': 1}\ndef check(candidate):\n    assert candidate([1.0, 2.0], 0.3) == False\n"
         "    assert candidate([1.0, 1.1], 0.3) == True\ncheck(near)"],
        1,
    ),
    "a value of the program": ("LIMIT = 10\ndef f():\n    return LIMIT", ["assert LIMIT == 10 and f() == LIMIT"], 1),
    # values
    "a tuple for a list": ("def f():\n    return (1, (2, 3))", [{"call": "f()", "value": [1, [2, 3]]}], 1),
    "a set for a list": ("def f():\n    return {3, 1, 2}", [{"call": "f()", "value": [1, 2, 3]}], 1),
    "a set that lacks one": ("def f():\n    return {1, 2}", [{"call": "f()", "value": [1, 2, 2]}], 0),
    "a list in another order": ("def f():\n    return [2, 1]", [{"call": "f()", "value": [1, 2]}], 0),
    "whole-number keys": ("def f():\n    return {1: 'a', 2: 'b'}", [{"call": "f()", "value": {"1": "a", "2": "b"}}], 1),
    "keys true and none": ("def f():\n    return {True: 1, None: 2}", [{"call": "f()", "value": {"true": 1, "null": 2}}], 1),
    "float noise": ("def f():\n    return 0.1 + 0.2", [{"call": "f()", "value": 0.3}, "assert f() == 0.3"], 1),
    "noise near zero": ("import math\ndef f():\n    return math.sin(math.pi)", [{"call": "f()", "value": 0}], 1),
    "4.0 for 4": ("def f():\n    return 4.0", [{"call": "f()", "value": 4}], 1),
    "1 for true": ("def f():\n    return 1", [{"call": "f()", "value": True}], 0),
    "true for 1": ("def f():\n    return True", [{"call": "f()", "value": 1}], 0),
    "a text for a number": ("def f():\n    return '4'", [{"call": "f()", "value": 4}], 0),
    "none": ("def f():\n    pass", [{"call": "f()", "value": None}, "assert f() is None"], 1),
    "nan": ("def f():\n    return float('nan')", [{"call": "f()", "value": float("nan")}], 1),
    "a large number": ("def f():\n    return 2 ** 200", [{"call": "f()", "value": 2**200}], 1),
    "a near large number": ("def f():\n    return 2 ** 200 + 1", [{"call": "f()", "value": 2**200}], 0),
    # printed
    "prints the answer": ("print(n * 2)", [{"inputs": {"n": 3}, "output": "6"}], 1),
    "a main guard that prints": ("if __name__ == '__main__':\n    print(n * 2)", [{"inputs": {"n": 3}, "output": "6\n"}], 1),
    "spaces at line ends": ("for i in range(2):\n    print(i, end=' \\n')\nprint()", [{"inputs": {}, "output": "0\n1"}], 1),
    "words around the output": ("print('The answer is', n * 2)", [{"inputs": {"n": 3}, "output": "6"}], 0),
    "other spaces between": ("print(1,  2)", [{"inputs": {}, "output": "1  2"}], 0),
    "much output": ("for i in range(5000):\n    print(i)", [{"inputs": {}, "output": "\n".join(map(str, range(5000)))}], 1),
    "prints, then fails": ("print(6)\n1 / 0", [{"inputs": {}, "output": "6"}], 0),
}  # fmt: skip
# What the interpreter lacks: right in CPython alone
PROCESS: dict[str, tuple[str, list[Any]]] = {
    "yield": ("def g():\n    yield 1\ndef f():\n    return list(g())", [{"call": "f()", "value": [1]}]),
    "inheritance": ("class A:\n    x = 1\nclass B(A):\n    pass", ["assert B().x == 1"]),
    "heapq": ("import heapq\ndef f(x):\n    heapq.heapify(x)\n    return x[0]", [{"call": "f([3, 1])", "value": 1}]),
    "del": ("def f(x):\n    del x[0]\n    return x", [{"call": "f([1, 2])", "value": [2]}]),
    "len of an object": ("class A:\n    def __len__(self):\n        return 3", ["assert len(A()) == 3"]),
    "property": ("class A:\n    @property\n    def x(self):\n        return 1", [{"call": "A().x", "value": 1}]),
    "a namedtuple": ("from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\ndef f():\n    return P(1)", [{"call": "f()", "value": [1]}]),
    "Fraction": ("from fractions import Fraction\ndef f():\n    return Fraction(1, 3)", ["from fractions import Fraction\nassert f() == Fraction(1, 3)"]),
    "Counter": ("from collections import Counter\ndef f(s):\n    return Counter(s)", [{"call": "f('abb')", "value": {"a": 1, "b": 2}}]),
    "dict.keys": ("def f():\n    return {1: 2}.keys()", [{"call": "f()", "value": [1]}]),
    "operators of an object": ("class V:\n    def __init__(self, x):\n        self.x = x\n    def __add__(self, o):\n        return V(self.x + o.x)", ["assert (V(1) + V(2)).x == 3"]),
    "a dataclass": ("from dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    x: 'int'\n    y: list = field(default_factory=list)", ["assert P(1).y == []"]),
}  # fmt: skip


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("answer", "cases", "ruling"), BOTH.values(), ids=BOTH)
def test_ruling(answer: str, cases: list[Any], ruling: float, runner: str) -> None:
    assert gold_problem("code", cases) is None
    assert verify("code", answer, cases, options_for("code", {"runner": runner, "seconds": 20})) == ruling


@needs_walls
@pytest.mark.parametrize(("answer", "cases"), PROCESS.values(), ids=PROCESS)
def test_what_the_interpreter_lacks_runs_in_a_process(answer: str, cases: list[Any]) -> None:
    assert gold_solution_problem(answer, cases, CodeOptions(runner="process", seconds=20)) is None


@pytest.mark.parametrize(
    ("answer", "cases", "told"),
    [
        (F, ADD, None),
        (fenced(F), ADD, None),
        (BAD, ADD, "case 1: add(2, 3) gives -1, not 5"),
        ("def add(a, b):\n    return 5", ADD, "case 2: AssertionError"),
        ("x = (", ADD, "case 1: SyntaxError"),
        (PROCESS["yield"][0], PROCESS["yield"][1], "yield expressions ... runner: process"),
        (PROCESS["heapq"][0], PROCESS["heapq"][1], "heapq ... runner: process"),
        ("print(n + 1)", [{"inputs": {"n": 1}, "output": "3"}], "prints '2"),
    ],
)
def test_a_gold_program_that_fails_is_told(answer: str, cases: list[Any], told: str | None) -> None:
    problem = gold_solution_problem(answer, cases, CodeOptions(seconds=20))
    if told is None:
        assert problem is None
    else:
        assert problem is not None
        assert all(part in problem for part in told.split(" ... "))


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("assert f(1) ==", "not Python"),
        ("   ", "empty"),
        ("assert f('\ud800')", "lone surrogate"),
        ({"call": "x = 3", "value": 3}, "must end with an expression"),
        ({"call": "f(", "value": 3}, "not Python"),
        ({"call": "f()", "value": "\ud800"}, "lone surrogate"),
        ({"call": "f()", "value": 10**5000}, "digits"),
        ({"inputs": {"a b": 1}, "output": "x"}, "not a name in Python"),
        ({"inputs": {"": 1}, "output": "x"}, "not a name in Python"),
        ({"inputs": {"class": 1}, "output": "x"}, "not a name in Python"),
        ({"inputs": {1: 1}, "output": "x"}, "not a name in Python"),
        ({"inputs": {"print": 1}, "output": "x"}, "hide Python's own print"),
        ({"inputs": {"__name__": 1}, "output": "x"}, "that Python reserves"),
        ({"inputs": {"n": {"\ud800": 1}}, "output": "x"}, "lone surrogate"),
        ({"inputs": {"n": [10**5000]}, "output": "x"}, "digits"),
        ({"inputs": {"n": object()}, "output": "x"}, "plain data"),
        ({"inputs": {"n": 1}, "output": "\ud800"}, "lone surrogate"),
        ({"inputs": {"n": 1}, "output": 4}, "neither"),
    ],
)
def test_a_case_that_no_program_can_pass_is_told(case: Any, told: str) -> None:
    problem = gold_problem("code", [case])
    assert problem is not None
    assert problem.startswith("case 1 ")
    assert told in problem


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1, (2, 3)], (1, [2, 3]), True),
        ({1: 2}, {"1": 2}, True),
        ({1: 2, "1": 2}, {"1": 2, "2": 2}, False),
        ({1.5: 0}, {"1.5": 0}, True),
        ({1, 2.0}, [2, 1], True),
        (frozenset({1}), {1}, True),
        ({1, 2}, {1, 3}, False),
        (set(range(5000)), list(range(5000)), True),
        (set(range(5000)), [[n] for n in range(5000)], False),
        (1e-13, 0, True),
        (1e-5, 0, False),
        (6.67e-11, 0, False),
        (1e20 + 1e5, 1e20, True),
        (float("inf"), float("inf"), True),
        (float("inf"), 1e308, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 0.0, False),
        (10**400, 1e300, False),
        (True, 1, False),
        (False, None, False),
        (None, None, True),
        (3 + 4j, 3 + 4j, True),
        (3 + 0j, 3, True),
        (b"a", "a", False),
        ("é", "e", False),
        ([], {}, False),
        ([], set(), True),
    ],
)
def test_same_result(a: Any, b: Any, same: bool) -> None:
    assert same_result(a, b) is same
    assert same_result(b, a) is same


@pytest.mark.parametrize(
    ("answer", "names", "code"),
    [
        ("x = 1", (), "x = 1"),
        ("```\nx = 1\n```", (), "x = 1\n"),
        ("```py\nx = 1\n```\nand\n```\ny = 2\n```", (), "x = 1\n"),
        ("```\nx = 1\n```\nand\n```\ny = 2\n```", (), "y = 2\n"),
        ("```\nx = 1\n```\nand\n```\ny = 2\n```", ("x",), "x = 1\n"),
        ("```\nx = 1\n```\nIt prints:\n```\n2\n```", (), "x = 1\n"),
        ("```python\n```", (), "\n"),
        ("a `b` c", (), "a `b` c"),
        ("```text\nx\n```", (), "```text\nx\n```"),
    ],
)
def test_extract_code(answer: str, names: tuple[str, ...], code: str) -> None:
    assert extract_code(answer, frozenset(names)) == code
