"""The lab runs programs: what comes out, what a bad program may do, and how behaviour is told apart."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from skillweave.reason import lab as module
from skillweave.reason.hypothesis import Evaluation
from skillweave.reason.lab import Lab, behaviour_digest
from skillweave.reason.problem import ExamplePairs, IOPair, Missing
from skillweave.tasks.verifiers.code_result import same_result

REVERSE = ExamplePairs("reverse", tuple(IOPair(x, x[::-1]) for x in ([1, 2], [3, 1, 2], [5], [4, 5, 0])))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as opened:
        yield opened


def wait(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def applied(lab: Lab, program: str, *inputs: Any) -> list[Any]:
    """The values, with each error as its text."""
    found = wait(lab.apply(program, inputs))
    return [value.why if isinstance(value, Missing) else value for value in found]


def test_a_right_program_solves_all_pairs_and_a_partly_right_one_some(lab: Lab) -> None:
    right: Evaluation = wait(lab.evaluate("def f(x):\n    return x[::-1]\n", REVERSE))
    assert right.solved == (True,) * 4
    assert right.coherent == 1.0
    assert right.outcomes == tuple(pair.output for pair in REVERSE.pairs)
    partly = wait(lab.evaluate("def f(x):\n    return sorted(x)\n", REVERSE))
    assert partly.solved == (False, False, True, False)


def test_behaviour_is_that_of_the_function_not_of_its_text(lab: Lab) -> None:
    texts = {
        "slice": "def f(x):\n    return x[::-1]",
        "loop": "def f(x):\n    out = ()\n    for item in x:\n        out = (item,) + out\n    return out",
        "float": "f = lambda x: [float(item) for item in reversed(x)]",
        "same": "def f(x):\n    return x",
        "bool": "def f(x):\n    return [item == 1 or item for item in x[::-1]]",
        "fails": "def f(x):\n    return x / 2",
        "fails alike": "import math\ndef f(x):\n    return math.sqrt(x)",
        "fails otherwise": "def f(x):\n    return {}[0]",
        "does not define it": "def g(x):\n    return x",
    }
    digest = {name: wait(lab.evaluate(text, REVERSE)).behaviour for name, text in texts.items()}
    assert digest["slice"] == digest["loop"] == digest["float"]
    assert digest["fails"] == digest["fails alike"]
    assert len(set(digest.values())) == len(texts) - 3


def test_programs_that_differ_only_on_probe_inputs_differ(lab: Lab) -> None:
    """On the training inputs alone these two could not be told apart."""
    known = [pair.input for pair in REVERSE.pairs]
    table = f"def f(x):\n    return x[::-1] if x in {known} else x"
    learnt = wait(lab.evaluate(table, REVERSE))
    true = wait(lab.evaluate("def f(x):\n    return x[::-1]", REVERSE))
    assert learnt.solved == true.solved
    assert learnt.behaviour != true.behaviour


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        (-0.0, 0),
        (0.1 + 0.2, 0.3),
        (1e15, 10**15),
        ([1, [2]], (1, (2,))),
        ({"a": 1, "b": 2.0}, {"b": 2, "a": 1}),
        ("1", 1),
        (None, 0),
        (math.nan, math.nan),
        (math.inf, 1e308),
        ([], {}),
        (2**63, 2**63 + 1),
    ],
)
def test_digests_agree_with_same_result(one: Any, other: Any) -> None:
    same = same_result(one, other)
    assert (behaviour_digest([one]) == behaviour_digest([other])) == same


def test_only_the_kind_of_an_error_counts() -> None:
    assert behaviour_digest([Missing("ValueError: a")]) == behaviour_digest([Missing("ValueError: b")])
    assert behaviour_digest([Missing("ValueError: a")]) != behaviour_digest([Missing("TypeError: a")])
    assert behaviour_digest([Missing("ValueError")]) != behaviour_digest(["ValueError"])


def test_inputs_stand_apart(lab: Lab) -> None:
    """An error on one input does not stop the others, and a program that changes its argument changes a copy."""
    program = "def f(x):\n    x.append(10 // x[0])\n    return x"
    inputs = [[1], [0], [5]]
    assert applied(lab, program, *inputs, [1]) == [
        [1, 10],
        "ZeroDivisionError: division by zero",
        [5, 2],
        [1, 10],
    ]
    assert inputs == [[1], [0], [5]]
    assert applied(lab, "kept = []\ndef f(x):\n    kept.append(x)\n    return kept", 1, 2) == [[1], [1, 2]]
    assert applied(lab, program) == []


def test_values_that_are_not_plain_data_are_missing_with_the_reason(lab: Lab) -> None:
    program = """
import math
def f(x):
    return [(1, (2,)), {1, 2}, len, b'a', {1: 2}, {1: 2, '1': 3}, {(1, 2): 3}, math.nan, 'ü\\n', None][x]
"""
    found = applied(lab, program, *range(10))
    assert found[0] == [1, [2]]
    for place, said in {1: "set", 2: "not JSON", 3: "bytes", 6: "keys must be"}.items():
        assert found[place].startswith("TypeError: the value is not plain data: "), found[place]
        assert said in found[place]
    assert found[4] == {"1": 2}
    assert "appears twice" in found[5]
    assert math.isnan(found[7])
    assert found[8:] == ["ü\n", None]


def test_a_program_that_breaks_a_limit_on_one_input_keeps_the_others(lab: Lab) -> None:
    loops = "def f(x):\n    while x == 2:\n        pass\n    return x"
    assert [str(found).partition(":")[0] for found in applied(lab, loops, 1, 2, 3)] == ["1", "TimeoutError", "3"]
    grows = "def f(x):\n    return len('a' * 10 ** x)"
    assert [str(found).partition(":")[0] for found in applied(lab, grows, 1, 9, 2)] == ["10", "MemoryError", "100"]
    deep = "def f(x):\n    return f(x) if x == 2 else x"
    assert [str(found).partition(":")[0] for found in applied(lab, deep, 1, 2, 3)] == ["1", "RecursionError", "3"]


def test_a_program_that_never_ends_costs_a_bounded_time_and_does_not_stop_others(lab: Lab) -> None:
    async def both() -> tuple[list[Any], bool]:
        endless = asyncio.ensure_future(lab.apply("def f(x):\n    while True:\n        pass", range(20)))
        await asyncio.sleep(0.1)
        other = await lab.apply("def f(x):\n    return x + 1", [1])
        assert other == [2]
        first = not endless.done()
        return await endless, first

    found, first = wait(both())
    assert first, "the other program had to wait for the endless one"
    assert all(outcome.why.startswith("TimeoutError") for outcome in found)
    assert "not run" in found[-1].why
    assert "not run" not in found[1].why


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return 'a' * 200_000",
        "def f(x):\n    for _ in range(120):\n        x = [x]\n    return x",
        "def f(x):\n    y = [x]\n    y.append(y)\n    return y",
        "def f(x):\n    return 10 ** 5000",
        "def f(x):\n    return object()",
        "def f(x) return x",
        "raise ValueError('at the start')",
        "f = 3",
        "def f(x):\n    return _sb_lines",
        "exec('_s' + 'b_dumps = 3')",
        "def f(x):\n    exec('_s' + 'b_lines.append(3)')\n    return x",
        "def f(x):\n    return x\nx = (",
        "def f(x):\n    return x\n'''",
        "def f(x):\n    return '\udc80'",
        "",
    ],
)
def test_a_bad_program_has_no_value_and_does_no_harm(lab: Lab, program: str) -> None:
    found = wait(lab.apply(program, [1, 2]))
    assert len(found) == 2
    assert isinstance(found[-1], Missing), found
    assert wait(lab.evaluate(program, REVERSE)).solved == (False,) * 4
    assert applied(lab, "def f(x):\n    return [len(x), str(x)]", [1]) == [[1, "[1]"]]


def test_a_program_may_change_names_and_print_without_changing_its_values(lab: Lab) -> None:
    program = """
from __future__ import annotations
list = str = repr = type = print_ = 3
print('[5]\\n[6]')
def f(x):
    print('[7]')
    return x + 1  # the last line has no line break"""
    assert applied(lab, program, 1, 2) == [2, 3]


def test_neither_outputs_nor_other_programs_can_be_seen(lab: Lab) -> None:
    applied(lab, "secret = 5\ndef f(x):\n    return x", 1)
    assert applied(lab, "def f(x):\n    return secret", 1) == ["NameError: name 'secret' is not defined"]
    # The whole namespace: no training output is in it.
    program = "def f(x):\n    exec('import json')\n    return sorted(str(eval('locals()')))\n"
    pairs = ExamplePairs("marked", (IOPair(1, "the secret output"), IOPair(2, "another")))
    evaluation = wait(lab.evaluate(program, pairs))
    assert "secret" not in json.dumps([str(outcome) for outcome in evaluation.outcomes])


def test_equal_texts_run_once_also_at_the_same_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    execute = module._execute

    def counted(program: str, *arguments: Any) -> Any:
        ran.append(program)
        return execute(program, *arguments)

    monkeypatch.setattr(module, "_execute", counted)
    text = "def f(x):\n    return [x[0]]  # once"

    async def many() -> list[Evaluation]:
        return await asyncio.gather(*(lab.evaluate(text, REVERSE) for _ in range(20)))

    first = wait(many())
    assert wait(many()) == first  # in another event loop
    assert len({evaluation.behaviour for evaluation in first}) == 1
    assert ran == [text]


def test_many_at_once_get_each_their_own_result_although_some_callers_give_up(lab: Lab) -> None:
    async def many() -> list[Any]:
        works = [asyncio.ensure_future(lab.apply(f"def f(x):\n    return x * {n}", [3])) for n in range(200)]
        await asyncio.sleep(0)
        for work in works[::2]:
            work.cancel()
        return await asyncio.gather(*works, return_exceptions=True)

    found = wait(many())
    assert found[1::2] == [[3 * n] for n in range(1, 200, 2)]
    assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
    assert applied(lab, "def f(x):\n    return x * 100", 3) == [300]


def test_a_bug_reaches_the_caller_and_is_not_remembered(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no sandbox")

    text = "def f(x):\n    return 'a bug'"
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_for_text", broken)
        with pytest.raises(OSError, match="no sandbox"):
            wait(lab.apply(text, [1]))
    assert applied(lab, text, 1) == ["a bug"]


@pytest.mark.timeout(30)
def test_closing_while_programs_run_and_wait_lets_nobody_wait_forever() -> None:
    async def closed() -> list[Any]:
        lab = Lab(workers=1)
        endless = "def f(x):\n    while True:\n        pass"
        works = [asyncio.ensure_future(lab.apply(text, [1])) for text in (endless, SLOW, SLOW + "  # another")]
        await asyncio.sleep(0.1)
        lab.close()
        assert not any(thread.is_alive() for thread in lab._threads._threads)
        results = await asyncio.gather(*works, return_exceptions=True)
        return [*results, *await asyncio.gather(*(lab.apply(SLOW, [1]) for _ in range(3)), return_exceptions=True)]

    running, *others = wait(closed())
    assert running[0].why.startswith("TimeoutError")
    assert [str(error) for error in others[:2]] == ["the lab was closed before this program began"] * 2
    assert [str(error) for error in others[2:]] == ["the lab is closed"] * 3


SLOW = "def f(x):\n    while x > 0:\n        x -= 1\n    return x"


def test_an_event_loop_that_ended_is_forgotten(lab: Lab) -> None:
    async def gives_up() -> None:
        waits = asyncio.ensure_future(lab.apply(SLOW, [2_000_000]))
        await asyncio.sleep(0.01)
        assert not waits.done()

    wait(gives_up())
    assert applied(lab, SLOW, 1) == [0]
    assert wait(lab.apply(SLOW, [2_000_000])) is not None
    assert not lab._ended


def test_an_event_loop_that_ended_before_it_was_told_is_forgotten_too(lab: Lab) -> None:
    closed = asyncio.new_event_loop()
    lab._ended[closed] = []
    closed.close()
    assert applied(lab, SLOW, 3) == [0]
    assert not lab._ended


def test_a_loop_that_another_thread_forgot_meanwhile_ends_no_thread(lab: Lab) -> None:
    class Closing:
        call_later = None

        def is_closed(self) -> bool:
            return False

        def call_soon_threadsafe(self, *_: Any) -> None:
            lab._ended.clear()
            raise RuntimeError("Event loop is closed")

    loop = Closing()
    lab._waiting[("", (), 0)] = [SimpleNamespace(get_loop=lambda: loop)]
    lab._end(("", (), 0), RuntimeError("it was closed"))
    assert not lab._ended
