"""Python for a model: variables stay, a cell that fails leaves nothing, episodes do not see each other."""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path

import pytest

from helpers.escapes import OUTSIDE, TRICKS
from skillweave.tools import Call, Limits, Toolbox, sandbox
from skillweave.tools.builtin import Python

QUICK = Limits(seconds=0.3, memory=20 * 2**20, depth=100, output=100)
"""For what has no end."""
ROOMY = Limits(seconds=120, memory=20 * 2**20, depth=100, output=100)
"""For what ends by another limit, on a slow machine too."""


def test_what_is_printed_and_the_last_value_are_shown() -> None:
    python = Python().python
    assert python("print('one')\nprint(2)\n[3, '4']") == "one\n2\n[3, '4']"
    assert python("print('one')") == "one"
    assert python("'text'") == "'text'"
    assert python("x = 1") == "(nothing was printed)"


def test_variables_functions_classes_and_modules_stay() -> None:
    python = Python().python
    python("import math\nx = [1, 2]\ndef double(n):\n    return 2 * n")
    python("class Point:\n    def __init__(self, a):\n        self.a = a\n    def twice(self): return double(self.a)")
    python("p = Point(4)\nx.append(math.floor(3.5))\nrest = iter(x)\nnext(rest)")
    assert python("p.twice() + sum(x)") == "14"
    assert python("next(rest)") == "2"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x.append(2)\n1 / 0", ZeroDivisionError),
        ("x.append(2)\nwhile True: pass", TimeoutError),
        ("x.append(2)\ny = []\nwhile True: y.append('a' * 1000)", MemoryError),
        ("x.append(2)\ndef f(): f()\nf()", RecursionError),
        ("x.append(2)\nopen('/etc/passwd')", PermissionError),
        ("x.append(2)\nimport socket", ModuleNotFoundError),
        ("x.append(2)\n10**5000", ValueError),
        ("x.append(2)\n(", SyntaxError),
        ("x.append(2)\nbig = ['a' * 1000 for _ in range(12000)]", MemoryError),  # fits, but not as bytes beside itself
    ],
)
def test_a_cell_that_fails_leaves_nothing_behind(code: str, error: type[Exception]) -> None:
    python = Python(QUICK if error is TimeoutError else ROOMY).python
    python("x = [1]")
    with pytest.raises(error):
        python(code)
    assert python("x") == "[1]"


@pytest.mark.parametrize("code", [*OUTSIDE, *TRICKS])
def test_no_cell_gets_out_neither_the_first_nor_one_that_goes_on(code: str) -> None:
    led_nowhere = (AttributeError, NameError, ModuleNotFoundError) if code in TRICKS else BaseException
    with pytest.raises(led_nowhere):
        Python(ROOMY).python(code)
    python = Python(ROOMY).python
    python("import os, sys\nfrom pathlib import Path\nx = [1]")
    with pytest.raises(led_nowhere):
        python(code)
    assert python("x") == "[1]"


def test_a_cell_that_writes_a_file_writes_none_here(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    python = Python(QUICK).python
    for before in ("x = 1", "from pathlib import Path"):
        python(before)
        for code in (f"open({str(target)!r}, 'w').write('x')", f"Path({str(target)!r}).write_text('x')"):
            with pytest.raises((PermissionError, NameError)):
                python(code)
    assert not target.exists()


def test_a_copy_goes_its_own_way() -> None:
    one = Python(QUICK)
    one.python("x = [1]")
    other = copy.copy(one)
    other.python("x.append(2)")
    one.python("x.append(3)")
    assert (one.python("x"), other.python("x")) == ("[1, 3]", "[1, 2]")


def test_a_timeout_reads_the_same_each_time() -> None:
    with pytest.raises(TimeoutError, match=r"^the code ran longer than 0\.3 s$"):
        Python(QUICK).python("while True: pass")


def test_the_same_cells_give_the_same_results() -> None:
    cells = ["import random\nrandom.random()", "random.random()", "hash('a') % 1000"]
    one, other = Python().python, Python().python
    assert [one(cell) for cell in cells] == [other(cell) for cell in cells]


def test_output_is_cut_and_says_so() -> None:
    said = "... (901 more characters were cut off)"  # the end of the line is one
    assert Python(ROOMY).python("print('y' * 1000)") == "y" * 100 + said
    assert Python(ROOMY).python("['y' * 103]") == "['" + "y" * 98 + "... (more than 1 more characters were cut off)"
    assert Python(ROOMY).python("'y' * 103") == "'" + "y" * 99 + "... (more than 1 more characters were cut off)"
    assert Python(ROOMY).python("print('y' * 99)") == "y" * 99


def test_more_episodes_than_workers() -> None:
    episodes = [Python().python for _ in range(40)]
    for number, python in enumerate(episodes):
        python(f"x = {number}")
    assert [python("x") for python in episodes] == [str(number) for number in range(40)]


def test_the_cells_of_an_episode_share_the_workers_that_run_already(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = set()
    pool = sandbox.pool()

    class Watched:
        def checkout(self, **settings):
            @contextlib.contextmanager
            def opened():
                with pool.checkout(**settings) as session:
                    workers.add(session.worker_pid)
                    yield session

            return opened()

    monkeypatch.setattr(sandbox, "pool", Watched)
    python = Python().python
    python("x = 0")
    for _ in range(50):
        python("x += 1")
    assert python("x") == "50"
    assert len(workers) <= (os.cpu_count() or 1)


def test_as_a_tool_faults_are_told_apart_and_turns_can_be_replayed() -> None:
    with Toolbox(timeout=120) as box:
        box.register_stateful(lambda: Python(QUICK).python)
        session = box.open()
        cells = ["x = 1", "x += 1", "x += 10\n1 / 0", "x += 100\nwhile True: pass", "x"]
        calls = [Call("python", {"code": cell}) for cell in cells]
        outcomes = session.start(calls).result(timeout=240)
        assert [outcome.fault for outcome in outcomes] == [None, None, "exception", "timeout", None]
        assert outcomes[2].text == "ZeroDivisionError: division by zero"
        assert outcomes[3].text == "TimeoutError: the code ran longer than 0.3 s"
        assert outcomes[4].text == "2"
        assert box.left_behind == 0
        other = box.open()
        other.replay([calls[:2], calls[2:3]])
        assert other.call(calls[4]).text == "2"
