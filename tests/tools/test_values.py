"""Values that are small inside the sandbox stay small outside it, whatever is done with them."""

from __future__ import annotations

import datetime
import json
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from helpers.escapes import GROWING
from skillweave.errors import UserError
from skillweave.tasks.verifiers.code_result import same_result
from skillweave.tools import Limits, process_runner, run
from skillweave.tools.builtin import Python
from skillweave.tools.builtin import python as python_tool
from skillweave.tools.process_child import Opaque, TooLarge, decode, encode
from skillweave.tools.values import ByteBudget, read_value

ROOMY = Limits(seconds=120)
MOST = 150
"""Megabytes by which the peak of the host process may grow; one of these values alone would take a gigabyte or more."""


def _walls() -> bool:
    try:
        return process_runner.run("1").ok
    except UserError:
        return False


needs_walls = pytest.mark.skipif(not _walls(), reason="this system cannot lock a process in")


@pytest.mark.parametrize("runner", ["interpreter", pytest.param("process", marks=needs_walls)])
def test_no_hostile_value_grows_outside(runner: str) -> None:
    command = [sys.executable, "-m", "helpers.growing", runner]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[1])
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"name"')]
    assert ran.returncode == 0, (lines[-1:], ran.stderr[-2000:])
    told = {line["name"]: line for line in lines if "grown" in line}
    assert told.keys() == GROWING.keys()
    for line in told.values():
        assert line["grown"] < MOST, line
        assert line["output"] <= 1000, line
        assert line["error"] < 2100, line
        assert line.get("tool", 0) < 1100, line
        assert line.get("score", 0) == 0, line


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("['x' * 600_000] * 2", "characters"),
        ("list(range(200_000))", "items"),
        ("a = []\nfor _ in range(300): a = [a]\na", "levels"),
        ("{(2**61 - 1) * i for i in range(1000)}", "keys of one hash"),
    ],
)
@pytest.mark.parametrize("runner", [run, pytest.param(process_runner.run, marks=needs_walls)])
def test_a_value_that_is_too_large_stays_inside_and_a_stand_in_says_so(runner: Any, code: str, kind: str) -> None:
    result = runner(code, limits=ROOMY)
    assert result.ok
    assert isinstance(result.value, Opaque)
    assert kind in repr(result.value)
    assert len(repr(result.value)) < 150


@pytest.mark.parametrize(
    "code",
    [
        "['x' * 900_000]",
        "list(range(90_000))",
        "[[i] for i in range(40_000)]",
        "{i: str(i) for i in range(30_000)}",
        "a = 0\nfor _ in range(90): a = [a]\na",
        "{(i, i + 1) for i in range(20_000)}",
    ],
)
def test_a_value_within_the_limits_comes_out_whole(code: str) -> None:
    space: dict[str, Any] = {}
    *before, last = code.split("\n")
    exec("\n".join(before), space)
    assert run(code, limits=ROOMY).value == eval(last, space)


def _made(dice: random.Random, depth: int) -> Any:
    """A value of plain data made by chance."""
    scalars = [
        None,
        True,
        dice.randint(-9, 9),
        dice.randint(2**60, 2**200),
        dice.random(),
        "é" * dice.randint(0, 4),
        b"\xff",
    ]
    if depth == 0 or dice.random() < 0.3:
        return dice.choice(scalars)
    items = [_made(dice, depth - 1) for _ in range(dice.randint(0, 12))]
    keys = dice.choice(
        [list(range(len(items))), [(i, "k") for i in range(len(items))], [str(i) for i in range(len(items))]]
    )
    same = [dice.choice(scalars)] * 12
    return dice.choice([items, tuple(items), dict(zip(keys, items, strict=True)), set(keys), frozenset(keys), same])


@pytest.mark.parametrize("seed", range(40))
def test_a_plain_value_comes_out_as_it_went_in(seed: int) -> None:
    value = _made(random.Random(seed), 4)
    found = run("x", {"x": value}, ROOMY).value
    assert found == value
    # Sets may stand in another order; everything else must be of the same types all through.
    assert isinstance(value, set | frozenset) or sorted(repr(found)) == sorted(repr(value))


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("import datetime\n[datetime.date(2020, 1, 2), datetime.timedelta(3)]",
         [datetime.date(2020, 1, 2), datetime.timedelta(3)]),
        ("import decimal\n{'a': decimal.Decimal('1.50')}", {"a": Decimal("1.50")}),
        ("import collections\ncollections.namedtuple('P', 'a b')(1, [2])", (1, [2])),
        ("import collections\ncollections.Counter('aab')", {"a": 2, "b": 1}),
        ("import collections\ncollections.deque([1, 2])", [1, 2]),
        ("'é' # the last line\n", "é"),
        ("x = 'é'; [x,\n x]; # after it", ["é", "é"]),
        ("(yes := 3)", 3),
        ("'a\\r\\nb'\r\n", "a\r\nb"),
        ("\ufeff'a'", "a"),
        ("1, 2", (1, 2)),
        ("list = type = isinstance = len = str = 3\n[1, {'a': (2,)}]", [1, {"a": (2,)}]),
        ("return 5", None),
    ],
)  # fmt: skip
def test_the_last_value_is_the_one_that_stands_last(code: str, value: Any) -> None:
    result = run(code, limits=ROOMY)
    assert result.ok, result.error
    assert result.value == value


@pytest.mark.parametrize(
    "code", ["_sb_take = 1", "x = _sb_value", "'_sb_'", "_\uff53b_take = 1", "import math as _sb_c"]
)
def test_the_names_of_the_sandbox_are_its_own(code: str) -> None:
    assert "are the sandbox's own" in (run(code, limits=ROOMY).error or "")
    with pytest.raises(SyntaxError, match="sandbox's own"):
        Python(ROOMY).python(code)


_HANG = "x = ()\nfor _ in range(60): x = (x, x)\n"  # takes forever to hash
_TAKE = "'_s' + 'b_take = lambda *_: {x: 1}'"


@pytest.mark.parametrize(
    "code",
    [
        f"{_HANG}exec({_TAKE})\n1",
        f"{_HANG}eval('(_s' + 'b_take := lambda *_: x)')\n1",
        f"{_HANG}eval('exec', {{}})({_TAKE})\n1",
        f"{_HANG}eval('eval(\"exec\", {{}})')({_TAKE})\n1",
        f"{_HANG}locals()['_s' + 'b_eval']('exec', {{}})({_TAKE})\n1",
        f"{_HANG}eval('locals()')['_s' + 'b_eval']('exec', {{}})({_TAKE})\n1",
        f"{_HANG}list(map(eval, ['(_\uff53b_take := 1)']))\n1",
        f"{_HANG}try: 1/0\nexcept Exception as exec: pass\nexec({_TAKE})\n1",
        f"{_HANG}try: 1/0\nexcept Exception as\\\n\texec: pass\nexec({_TAKE})\n1",
        f"{_HANG}try: 1/0\nexcept Exception as \uff45xec: pass\nexec({_TAKE})\n1",
        f"{_HANG}exec = 3\ndel exec\nexec({_TAKE})\n1",
    ],
)
def test_code_that_puts_names_together_does_not_reach_those_of_the_sandbox(code: str) -> None:
    refused = ("NameError", "SyntaxError", "TypeError: eval()", "NotImplementedError: The monty syntax parser does not")
    assert (run(code, limits=ROOMY).error or "").startswith(refused)


def test_eval_still_computes() -> None:
    assert run("x = 3\ndef f(text):\n    return eval(text)\n[eval('x * 2'), f('[1, (2,)]')]").value == [6, [1, (2,)]]


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("[1, (2,), {'a': {3}}, frozenset([4]), set(), (), {}, frozenset()]",
         "[1, (2,), {'a': {3}}, frozenset({4}), set(), (), {}, frozenset()]"),
        ("'it\\'s'", '"it\'s"'),
        ("[None, True, 1.5, b'x']", "[None, True, 1.5, b'x']"),
        ("None", "(nothing was printed)"),
        ("class A:\n    def __repr__(self): return 'mine'\n[A()]", "[mine]"),
        ("str = repr = 3\n[1]", "[1]"),
    ],
)  # fmt: skip
def test_the_tool_shows_values_as_python_writes_them(code: str, shown: str) -> None:
    assert Python(ROOMY).python(code) == shown


def test_the_tool_says_how_much_of_an_error_is_cut() -> None:
    with pytest.raises(ValueError, match=r"^x{2,}\.\.\. \(\d[\d,]+ more characters were cut off\)$"):
        Python(ROOMY).python("raise ValueError('x' * 10**6)")


def test_the_variables_of_an_episode_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    python = Python(ROOMY).python
    python("x = 1")
    with pytest.raises(MemoryError, match=r"variables take [\d,]+ bytes, more than 4,194,304"):
        python("x = 'a' * (5 * 2**20)")
    assert python("x") == "1"


def test_the_variables_of_all_episodes_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_tool, "STATES", ByteBudget(300_000))
    first, second = Python(ROOMY), Python(ROOMY)
    first.python("x = 'a' * 200_000")
    with pytest.raises(MemoryError, match="all conversations take more than 300,000 bytes"):
        second.python("x = 'b' * 200_000")
    del first
    assert second.python("x = 'b' * 200_000") == "(nothing was printed)"


# -- what a process sends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        ["Fraction", "1e999999999"],
        ["Fraction", "1/0"],
        ["set", [["int", f"{(2**61 - 1) * i:x}"] for i in range(1000)]],
        ["dict", [[["int", f"{(2**61 - 1) * i:x}"], 1] for i in range(1000)]],
        ["timedelta", [1e308, 1, 1]],
    ],
)
def test_what_takes_for_ever_to_read_is_refused(written: Any) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        decode(written)


@pytest.mark.parametrize(
    "value",
    [range(10**18), [0] * 10**6, ["x" * 10**6] * 3, {1: {2: "x" * 10**7}}, [1 << 10**8]],
    ids=["range", "items", "texts", "deep text", "number"],
)
def test_a_process_does_not_write_more_than_its_room(value: Any) -> None:
    from skillweave.tools.process_child import Room

    with pytest.raises(TooLarge):
        encode(value, room=Room(1000, 10**6))


FORGED = """
import sys
frame, loop = sys._getframe(), None
while frame is not None:
    loop = frame.f_locals.get('self') if type(frame.f_locals.get('self')).__name__ == 'Loop' else loop
    frame = frame.f_back
def forge(text):
    loop._out.write((text % loop.token).encode())
    loop._out.flush()
"""


@needs_walls
@pytest.mark.parametrize(
    "text",
    [
        "'{\"value\": ' + '[' * 10**6 + '1' + ']' * 10**6 + ', \"token\": \"%s\"}\\n'",
        '\'{"value": ["list", [\' + \'[],\' * 10**7 + \'1]], "token": "%s"}\\n\'',
        '\'{"value": ["Fraction", "1e999999999"], "token": "%s"}\\n\'',
        "'{\"value\": ' + '9' * 10**6 + ', \"token\": \"%s\"}\\n'",
        "'x' * 10**7 + '%s'",
    ],
    ids=["brackets", "a long list", "a power of ten", "a long number", "no end"],
)
def test_a_forged_reply_is_bounded(text: str) -> None:
    result = process_runner.run(f"{FORGED}forge({text})\n1", limits=Limits(seconds=30, memory=2**28))
    assert not result.ok
    assert result.error is not None
    assert result.error.startswith(("RuntimeError", "TimeoutError"))


def test_values_that_raise_where_they_are_compared_are_not_the_same() -> None:
    assert not same_result(Decimal("sNaN"), Decimal("1"))
    assert not same_result({10**5000: 1}, {"a": 1})
    assert not same_result(datetime.time(1, tzinfo=datetime.UTC), datetime.time(1, 1))


def test_what_the_interpreter_wrote_is_read_back() -> None:
    assert read_value(["list", 2, 0, 1, "dict", 2, 0, "a", "tuple", 0], 10, 10) == [1, {"a": ()}]
    assert isinstance(read_value(None, 10, 10), Opaque)
