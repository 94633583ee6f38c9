"""Functions become tools; calls are checked, run side by side, stopped in time, and never raise."""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import pytest

from skillweave.errors import UserError
from skillweave.tools import FAULTS, Call, Outcome, Toolbox, ToolSession
from skillweave.tools import toolbox as toolbox_module
from skillweave.tools.toolbox import RESULT_LENGTH


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def shapes(where: tuple[int, int], unit: Literal["cm", "in"], scale: float = 1.0) -> dict[str, Any]:
    """Take arguments of several kinds.

    Args:
        where: a place
        unit: of the scale
        scale: a factor
    """
    return {"where": where, "unit": unit, "scale": scale}


def nap(seconds: float) -> str:
    """Wait.

    Args:
        seconds: how long
    """
    time.sleep(seconds)
    return "rested"


def now() -> str:
    """Tell the time of day."""
    return "noon"


def fail(kind: str) -> Any:
    """Go wrong.

    Args:
        kind: how
    """
    if kind == "exit":
        raise SystemExit(3)
    if kind == "late":
        raise TimeoutError("took too long")
    if kind == "long":
        raise ValueError("x" * 10_000)
    if kind == "bare":
        raise KeyboardInterrupt
    return math if kind == "no json" else 1 / 0


def tally() -> Callable[..., Any]:
    held: list[int] = []

    def keep(number: int, wait: float = 0.0) -> list[int]:
        """Keep a number.

        Args:
            number: the number
            wait: seconds before it is kept
        """
        time.sleep(wait)
        held.append(number)
        return held

    return keep


@pytest.fixture
def box() -> Iterator[Toolbox]:
    with Toolbox([add, shapes, nap, now, fail], timeout=120) as box:
        box.register_stateful(tally)
        yield box


@pytest.fixture
def session(box: Toolbox) -> ToolSession:
    return box.open()


def test_the_schema_is_made_from_signature_and_docstring(box: Toolbox) -> None:
    assert box.names == ["add", "shapes", "nap", "now", "fail", "keep"]
    schema = box.schemas[0]
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "add"
    assert schema["function"]["description"] == "Add two numbers."
    assert schema["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "the first"},
            "b": {"type": "integer", "description": "the second"},
        },
        "required": ["a"],
    }
    assert box.schemas[3]["function"]["parameters"]["properties"] == {}
    assert [schema["function"]["name"] for schema in box.schemas] == box.names


def test_register_is_a_decorator() -> None:
    box = Toolbox()
    assert box.register(add) is add
    assert box.open().call(Call("add", {"a": 2})).text == "3"


def test_a_result_is_its_text_or_its_json(session: ToolSession) -> None:
    assert session.call(Call("now", {})) == Outcome("noon", None, pytest.approx(0, abs=0.5))
    assert session.call(Call("add", {"a": 2, "b": 5})).text == "7"
    outcome = session.call(Call("shapes", {"where": [1, 2], "unit": "cm", "scale": 2}))
    assert outcome.text == '{"where": [1, 2], "unit": "cm", "scale": 2.0}'
    assert outcome.fault is None


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("add", {}, "a: Field required"),
        ("add", {"a": "3"}, "a: Input should be a valid integer"),
        ("add", {"a": 3.0}, "a: Input should be a valid integer"),
        ("add", {"a": True}, "a: Input should be a valid integer"),
        ("add", {"a": None}, "a: "),
        ("add", {"a": 1, "c": 2}, "c: Extra inputs are not permitted"),
        ("add", {"a": 10**5000}, ""),
        ("add", {"a": object()}, "no JSON"),
        ("shapes", {"where": [1], "unit": "cm"}, "where.1: Field required"),
        ("shapes", {"where": [1, 2], "unit": "mile"}, "unit: Input should be 'cm' or 'in'"),
        ("shapes", {"where": [1, 2], "unit": "\ud800"}, ""),
        ("nap", {"seconds": "1"}, "seconds: Input should be a valid number"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_runs(session: ToolSession, name: str, arguments: Any, said: str) -> None:
    outcome = session.call(Call(name, arguments))
    assert outcome.fault == "wrong arguments"
    assert outcome.text.startswith(f"wrong arguments for {name}: ")
    assert said in outcome.text
    assert outcome.seconds == 0


def test_an_unknown_tool_is_told_what_there_is(session: ToolSession) -> None:
    assert session.call(Call("ad", {})) == Outcome("unknown tool 'ad'; did you mean 'add'?", "unknown tool")
    assert len(session.call(Call("x" * 5000, {})).text) <= 300
    assert Toolbox().open().call(Call("add", {})).text == "unknown tool 'add'; there are none"


@pytest.mark.parametrize(
    ("kind", "said", "fault"),
    [
        ("zero", "ZeroDivisionError: division by zero", "exception"),
        ("exit", "SystemExit: 3", "exception"),
        ("bare", "KeyboardInterrupt", "exception"),
        ("late", "TimeoutError: took too long", "timeout"),
        ("no json", "TypeError: Object of type module is not JSON serializable", "exception"),
    ],
)
def test_what_a_tool_raises_comes_back_in_one_line(session: ToolSession, kind: str, said: str, fault: str) -> None:
    outcome = session.call(Call("fail", {"kind": kind}))
    assert (outcome.text, outcome.fault) == (said, fault)


def test_an_error_of_several_lines_comes_back_in_one(box: Toolbox) -> None:
    @box.register
    def explain() -> str:
        """Say what is wrong."""
        raise ValueError("no\n  such\r\n\tline\u2028here")

    assert box.open().call(Call("explain", {})).text == "ValueError: no such line here"


def test_an_error_that_cannot_say_what_it_is_is_named(box: Toolbox) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit("no")

    @box.register
    def mumble() -> str:
        """Fail."""
        raise Mute

    outcome = box.open().call(Call("mumble", {}))
    assert (outcome.text, outcome.fault, box.left_behind) == ("Mute", "exception", 0)


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_the_model_cannot_mend_ends_the_run(box: Toolbox, at_once: int) -> None:
    @box.register
    def ask() -> str:
        """Ask what is not installed."""
        raise UserError("the program is missing: install it")

    turn = box.open().start([*[Call("ask", {})] * at_once, Call("now", {})])
    with pytest.raises(UserError, match="the program is missing: install it"):
        turn.result(timeout=240)


def test_so_does_a_past_that_cannot_be_lived_again(box: Toolbox) -> None:
    def make() -> Callable[..., Any]:
        def ask() -> str:
            """Ask what is not installed."""
            raise UserError("the program is missing: install it")

        return ask

    box.register_stateful(make)
    with pytest.raises(UserError, match="the program is missing"):
        box.open_after([[[Call("ask", {})]]])


def test_a_long_error_is_cut(session: ToolSession) -> None:
    text = session.call(Call("fail", {"kind": "long"})).text
    assert len(text) == 300
    assert text.startswith("ValueError: xxx")
    assert text.endswith("...")


def test_a_tool_that_does_not_come_back_is_left_behind_and_counted() -> None:
    with Toolbox([nap, add], timeout=0.1) as box:
        session = box.open()
        start = time.perf_counter()
        outcome = session.call(Call("nap", {"seconds": 600.0}))
        assert outcome == Outcome("timeout: nap gave no result in 0.1 s", "timeout", 0.1)
        assert box.left_behind == 1
        box.timeout = 120
        assert session.call(Call("add", {"a": 1})).text == "2"
    assert time.perf_counter() - start < 500  # neither the call nor closing waited for it


def test_the_calls_of_a_turn_run_side_by_side_and_keep_their_order(box: Toolbox) -> None:
    meeting = threading.Barrier(2)

    @box.register
    def meet() -> str:
        """Wait for the other."""
        meeting.wait(60)
        return "met"

    broken = Outcome("malformed call", "malformed")
    calls = [Call("meet", {}), Call("add", {"a": 1}), broken, Call("meet", {}), Call("no", {})]
    outcomes = box.open().start(calls).result(timeout=240)
    assert [outcome.text for outcome in outcomes[:4]] == ["met", "2", "malformed call", "met"]
    assert [outcome.fault for outcome in outcomes] == [None, None, "malformed", None, "unknown tool"]
    assert {outcome.fault for outcome in outcomes} <= {None, *FAULTS}


def test_a_turn_is_started_without_waiting_for_it(box: Toolbox) -> None:
    told = threading.Event()

    @box.register
    def wait() -> bool:
        """Wait to be told."""
        return told.wait(60)

    turn = box.open().start([Call("wait", {})])
    assert not turn.done()
    told.set()
    assert turn.result(timeout=240)[0].text == "true"


def test_a_turn_without_a_call_to_run_is_over_at_once(session: ToolSession) -> None:
    assert session.start([]).result(timeout=0) == []
    broken = Outcome("x", "malformed")
    assert session.start([broken]).result(timeout=0) == [broken]


def test_waiting_for_a_turn_is_not_on_the_clock() -> None:
    with Toolbox([nap], timeout=2.0, most_at_once=1) as box:
        outcomes = box.open().start([Call("nap", {"seconds": 0.6})] * 4).result(timeout=240)
        assert [outcome.fault for outcome in outcomes] == [None] * 4


def test_no_more_calls_run_at_once_than_allowed() -> None:
    running, most, lock, meeting = 0, 0, threading.Lock(), threading.Barrier(3)

    def work(number: int) -> int:
        """Work.

        Args:
            number: of the piece
        """
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait(60)  # breaks, and so fails, unless three run at once
        with lock:
            running -= 1
        return number

    with Toolbox([work], timeout=120, most_at_once=3) as box:
        turns = [box.open().start([Call("work", {"number": n})] * 4) for n in range(3)]
        assert [[outcome.text for outcome in turn.result(timeout=240)] for turn in turns] == [
            [str(n)] * 4 for n in range(3)
        ]
    assert most == 3


def test_state_belongs_to_its_episode_and_is_changed_in_order(box: Toolbox) -> None:
    one, other = box.open(), box.open()
    calls = [Call("keep", {"number": 1, "wait": 0.2}), Call("keep", {"number": 2}), Call("keep", {"number": 3})]
    assert [outcome.text for outcome in one.start(calls).result(timeout=240)] == ["[1]", "[1, 2]", "[1, 2, 3]"]
    assert other.call(Call("keep", {"number": 9})).text == "[9]"
    assert one.call(Call("keep", {"number": 4})).text == "[1, 2, 3, 4]"


def test_replay_brings_state_back_and_calls_nothing_else(box: Toolbox) -> None:
    session = box.open()
    session.replay(
        [[Call("keep", {"number": 1}), Call("nap", {"seconds": 60.0})], [], [Call("no", {}), Call("keep", {})]]
    )
    assert session.call(Call("keep", {"number": 2})).text == "[1, 2]"


class Shelf:
    """What is put on it stays; a copy of it says so. ``lived`` counts the calls."""

    lived: ClassVar[list[str]] = []

    def __init__(self, things: Sequence[str] = ()) -> None:
        self.things = list(things)

    def __copy__(self) -> Shelf:
        return Shelf([*self.things, "copied"])

    def put(self, thing: str) -> list[str]:
        """Put something there.

        Args:
            thing: what
        """
        self.lived.append(thing)
        self.things.append(thing)
        return self.things


def putting(thing: str) -> Call:
    return Call("put", {"thing": thing})


def test_episodes_begin_after_their_pasts_and_equal_pasts_are_lived_once() -> None:
    Shelf.lived = []
    with Toolbox([now]) as box:
        box.register_stateful(lambda: Shelf().put)
        both = [[putting("a"), Call("now", {})], [putting("b")]]
        sessions = box.open_after([both, [], [[putting("a")]], [list(turn) for turn in both], both])
        assert sorted(Shelf.lived) == ["a", "a", "b"]
        assert [json.loads(session.call(putting("c")).text) for session in sessions] == [
            ["a", "b", "c"], ["c"], ["a", "c"], ["a", "b", "copied", "c"], ["a", "b", "copied", "c"],
        ]  # fmt: skip
        assert box.open_after([]) == []


def test_a_copy_that_is_left_behind_is_brought_back_to_where_it_stood() -> None:
    with Toolbox(timeout=120) as box:
        box.register_stateful(tally)
        _, twin = box.open_after([[[Call("keep", {"number": 1})]]] * 2)
        box.timeout = 0.2
        assert twin.call(Call("keep", {"number": 2, "wait": 600.0})).fault == "timeout"
        box.timeout = 120
        assert twin.call(Call("keep", {"number": 3})).text == "[1, 3]"


def test_what_cannot_be_copied_is_lived_again(box: Toolbox) -> None:
    first, other = box.open_after([[[Call("keep", {"number": 1}), Call("keep", {})]]] * 2)
    assert first.call(Call("keep", {"number": 2})).text == "[1, 2]"
    assert other.call(Call("keep", {"number": 3})).text == "[1, 3]"


def test_different_pasts_are_lived_side_by_side() -> None:
    meeting = threading.Barrier(3)

    def make() -> Callable[..., Any]:
        def meet(name: str) -> str:
            """Wait for the others.

            Args:
                name: who comes
            """
            meeting.wait(120)
            return name

        return meet

    with Toolbox(timeout=240) as box:
        box.register_stateful(make)
        box.open_after([[[Call("meet", {"name": name})]] for name in "abc"])
    assert not meeting.broken


def test_a_stateful_call_left_behind_changes_nothing_later() -> None:
    told, over = threading.Event(), threading.Event()

    def make() -> Callable[..., Any]:
        held: list[int] = []

        def keep(number: int) -> list[int]:
            """Keep a number; the second one late.

            Args:
                number: the number
            """
            if number == 2:
                told.wait(60)
            held.append(number)
            if number == 2:
                over.set()
            return held

        return keep

    with Toolbox(timeout=120) as box:
        box.register_stateful(make)
        session = box.open()
        assert session.call(Call("keep", {"number": 1})).fault is None
        box.timeout = 0.2
        assert session.call(Call("keep", {"number": 2})).fault == "timeout"
        box.timeout = 120
        told.set()
        assert over.wait(60)  # the thread that was left behind has ended
        assert session.call(Call("keep", {"number": 3})).text == "[1, 3]"
        assert box.left_behind == 1


def no_docstring(a: int) -> int:
    return a


def no_type(a) -> int:
    """Do.

    Args:
        a: something
    """
    return a


def no_description(a: int) -> int:
    """Do."""
    return a


def any_number(*numbers: int) -> int:
    """Do.

    Args:
        numbers: all of them
    """
    return sum(numbers)


def by_place(a: int, /) -> int:
    """Do.

    Args:
        a: a number
    """
    return a


class Thing:
    """No JSON is one."""


def of_a_thing(a: Thing) -> int:
    """Do.

    Args:
        a: one
    """
    return 1


async def later() -> int:
    """Do."""
    return 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_docstring, "no_docstring"),
        (no_type, r"'no_type': the parameter 'a' has no type: write one, a: str$"),
        (of_a_thing, r"has a type that JSON does not have: of_a_thing\(a: '?Thing'?\) -> '?int'?\. Use int, .*these$"),
        (no_description, "no_description"),
        (any_number, r"\*numbers"),
        (by_place, "come by name"),
        (later, "coroutine"),
        (functools.partial(add, 1), "must be a Python function"),
        (math.sqrt, "must be a Python function"),
        (add, "there is a tool 'add' already"),
    ],
)
def test_a_function_that_is_no_tool_is_refused(function: Any, said: str) -> None:
    box = Toolbox([add])
    with pytest.raises(UserError, match=said):
        box.register(function)
    assert box.names == ["add"]


@pytest.mark.parametrize("given", [{"timeout": 0}, {"most_at_once": 0}])
def test_limits_that_let_nothing_run_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="more than 0"):
        Toolbox([add], **given)


# -- results and calls without end -------------------------------------------------------------------------------------


def grown(kind: str) -> Any:
    """Give a result that is larger than it looks.

    Args:
        kind: which
    """
    twice: list[Any] = []
    for _ in range(50):
        twice = [twice, twice]
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    return {
        "text": "x" * 250_000, "shared": ["x" * 10_000] * 10**6, "twice": twice, "deep": deep, "short": ["é", 1, None]
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("text", "... (150,000 more characters were cut off)"),
        ("shared", "... (the rest was cut off)"),
        ("twice", "... (the rest was cut off)"),
        ("short", '["é", 1, null]'),
    ],
)
def test_a_long_result_is_cut_before_it_is_written_and_says_so(kind: str, end: str) -> None:
    with Toolbox([grown], timeout=300) as box:
        outcome = box.open().call(Call("grown", {"kind": kind}))
    assert outcome.fault is None
    assert outcome.text.endswith(end)
    assert len(outcome.text) < RESULT_LENGTH + 100


def test_a_result_that_is_too_deep_is_a_fault() -> None:
    with Toolbox([grown], timeout=300) as box:
        assert box.open().call(Call("grown", {"kind": "deep"})).text.startswith("RecursionError")


def test_calls_that_hang_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox_module, "MOST_HANGING", 3)
    release = threading.Event()
    ran: list[int] = []

    def hang() -> str:
        """Wait."""
        ran.append(1)
        release.wait()
        return "done"

    with Toolbox([hang], timeout=0.05) as box:
        outcomes = [box.open().call(Call("hang", {})) for _ in range(5)]
        assert [outcome.fault for outcome in outcomes] == ["timeout"] * 5
        assert len(ran) == 3
        assert "3 calls that took too long still run" in outcomes[-1].text
        release.set()
        while box.hanging:
            time.sleep(0.01)
        box.timeout = 300
        assert box.open().call(Call("hang", {})).text == "done"


def test_an_exception_with_a_long_text_is_cut_before_it_is_split() -> None:
    def fail() -> str:
        """Fail."""
        raise ValueError("a " * 10**7)

    with Toolbox([fail], timeout=300) as box:
        assert len(box.open().call(Call("fail", {})).text) <= 300
