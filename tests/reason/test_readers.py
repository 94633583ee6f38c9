"""Problems in the public layouts, and the errors of damaged files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skillweave.errors import UserError
from skillweave.reason import generators
from skillweave.reason.problem import IOPair, Problem
from skillweave.reason.readers import load_problems
from skillweave.reason.solution import Solution

DATA = Path(__file__).parent / "data"
ENDED = Solution((), "budget", 0, 0)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said on standard error."""
    notes: list[str] = []
    for module in ("reason.readers", "reason.generators", "tasks.readers"):
        monkeypatch.setattr(f"skillweave.{module}.say_once", notes.append)
    return notes


def _task(**changes: Any) -> dict[str, Any]:
    pairs = [{"input": [[0, 1]], "output": [[1, 0]]}]
    return {"train": pairs, "test": pairs, **changes}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    def written(name: str, *rows: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return str(path)

    return written


def _tests(problem: Problem) -> list[tuple[Any, bool]]:
    """Each test input, and whether [7] would be right for it."""
    inputs = problem.held_out.inputs(ENDED)
    return list(zip(inputs, problem.held_out.grade([[7]] * len(inputs)).right, strict=True))


def test_list_functions_in_the_published_layout_hold_literals(said: list[str]) -> None:
    problems = load_problems(str(DATA / "list_functions.jsonl"))
    assert [problem.name for problem in problems] == ["0", "1"]
    assert problems[0].examples.pairs == (IOPair([1, 2, 3], [3]), IOPair([5], [5]), IOPair([], []))
    assert _tests(problems[0]) == [([4, 7], True), ([9, 8], False)]
    assert len(said) == 1
    assert "every input and output is a text that holds a Python literal" in said[0]
    texts = load_problems(str(DATA / "list_functions.jsonl"), values="text")
    assert texts[0].examples.pairs[0] == IOPair("[1, 2, 3]", "[3]")


def test_texts_stay_texts_where_not_all_of_them_are_literals(said: list[str]) -> None:
    problem, numbers = load_problems(str(DATA / "mini_scan.jsonl"))
    assert problem.examples.pairs[0] == IOPair("dax", "RED")
    assert numbers.examples.pairs[0] == IOPair("1", "2")
    assert said == []
    with pytest.raises(UserError, match=r"mini_scan.jsonl, line 1: .*no Python literal of plain data: 'dax'"):
        load_problems(str(DATA / "mini_scan.jsonl"), values="literal")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "1" * 5000,
        "x = 1",
        "1; 2",
        "",
        "{1, 2}",
        "{1: 2}",
        "b'a'",
        "1j",
        "f(3)",
        "'\\d",
        "[1, ...]",
        "(" * 150,
    ],
)
def test_a_text_that_is_no_literal_of_plain_data_stays_a_text(text: str, write: Callable[..., str]) -> None:
    source = write(
        "a.jsonl", {"train": [{"input": "[1]", "output": text}], "test": [{"input": "[2]", "output": "[3]"}]}
    )
    assert load_problems(source)[0].examples.pairs == (IOPair("[1]", text),)


def test_acre_and_mini_arc_hold_texts_and_json(said: list[str]) -> None:
    acre = load_problems(str(DATA / "acre.jsonl"))[0]
    assert acre.examples.family == "acre"
    assert acre.examples.pairs[1] == IOPair(["red metal cube", "blue rubber cube"], "off")
    assert said == [f"{DATA / 'acre.jsonl'}: 1 of 1 rows (100%) have keys that are not read, such as 'source'"]
    grids = load_problems(str(DATA / "mini_arc.jsonl"))[0]
    assert grids.examples.pairs[0].output == [[1, 0], [0, 2]]


def test_arc_as_a_file_a_mapping_and_folders(write: Callable[..., str], said: list[str]) -> None:
    one = load_problems(write("move.json", _task()))
    assert [problem.name for problem in one] == ["move"]
    assert one[0].examples.pairs == (IOPair([[0, 1]], [[1, 0]]),)
    mapping = load_problems(write("all.json", {"a1": _task(), "b2": _task()}))
    assert [problem.name for problem in mapping] == ["a1", "b2"]
    write("tasks/b.json", _task())
    folder = Path(write("tasks/a.json", _task())).parent
    (folder / "moves").mkdir()
    (folder / "moves" / "m1.json").write_text(json.dumps(_task()))
    problems = load_problems(str(folder))
    assert [(problem.name, problem.examples.family) for problem in problems] == [("a", ""), ("b", ""), ("m1", "moves")]
    assert any("3 of 3 test inputs (100%) are also training inputs" in note for note in said)


def test_a_limit_takes_the_first_and_says_so(said: list[str]) -> None:
    problems = load_problems(str(DATA / "list_functions.jsonl"), limit=1)
    assert [problem.name for problem in problems] == ["0"]
    assert any("only the first 1 of 2 problems (50%)" in note for note in said)
    assert problems[0].examples.pairs[0].input == [1, 2, 3], "the whole file decides how texts are read"


def test_a_name_that_occurs_again_gets_a_number(write: Callable[..., str], said: list[str]) -> None:
    names = ["x", "x-2", 1, "x", "1", "x"]
    problems = load_problems(write("a.jsonl", *(_task(idx=name) for name in names)))
    assert [problem.name for problem in problems] == ["x", "x-2", "1", "x-3", "1-2", "x-4"]
    assert any("3 of 6 problems (50%) had the name of an earlier one and got a number" in note for note in said)


@pytest.mark.filterwarnings("error")
def test_literals_are_read_without_a_warning_and_with_lists_for_tuples(write: Callable[..., str]) -> None:
    pairs = [{"input": r"'\d'", "output": "(1, [None])"}]
    source = write("a.jsonl", {"train": pairs, "test": pairs})
    assert load_problems(source)[0].examples.pairs == (IOPair(r"\d", [1, [None]]),)


def test_values_of_all_json_types_are_read(write: Callable[..., str]) -> None:
    row = {"name": "ü/1", "family": "f", **_task(train=[{"input": {"a": [1.5, None]}, "output": True}]), "rule": "x"}
    problem = load_problems(write("a.jsonl", row))[0]
    assert (problem.name, problem.examples.family) == ("ü/1", "f")
    assert problem.examples.pairs == (IOPair({"a": [1.5, None]}, True),)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.jsonl", [_task(), "{"], "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", [], "holds no problem"),
        ("a.jsonl", [_task(), _task(test=[])], "line 2: 'test' must be a list of at least one"),
        ("a.jsonl", [{"train": _task()["train"], "tests": []}], "there is no 'test'; did you mean 'tests'?"),
        ("a.jsonl", [_task(train=[{"input": 1}])], "train pair 1 has no 'output'$"),
        ("a.jsonl", [_task(train=[[1, 2]])], "train pair 1 must be {'input': ..., 'output': ...}, not \\[1, 2\\]"),
        ("a.jsonl", [_task(), _task(test=[{"input": [1, {"a": math.nan}], "output": 1}])], "line 2: the input of test"),
        ("a.jsonl", [_task(train=[{"input": 1, "output": -math.inf}])], "output of train pair 1 holds .* not finite"),
        ("a.jsonl", ['{"train": [{"input": "1e999", "output": "1"}], "test": [{"input": "1", "output": "1"}]}'], "inf"),
        ("a.jsonl", [_task(idx=[1])], "'idx' must be a text or a whole number, not \\[1\\]"),
        ("a.jsonl", [_task(name=True)], "'name' must be"),
        ("a.jsonl", [_task(family=3)], "'family' must be a text, not 3"),
        ("a.jsonl", ['"text"'], "expected an object"),
        ("a.json", [{"x": _task(test=[{"input": [[1]]}])}], "a.json, 'x': test pair 1 has no 'output'; ARC's test out"),
        ("a.json", [_task(train=[{"input": [[1], [1, 2]], "output": [[1]]}])], "the input of train pair 1 is no grid"),
        ("a.json", [_task(test=[{"input": [[1]], "output": [[True]]}])], "the output of test pair 1 is no grid"),
        ("a.json", [{"x": 3}], "expected a task .* found"),
        ("a.json", [[_task(), 3]], "a.json, row 2: expected an object"),
        ("a.txt", [_task()], "names no problems: name a .jsonl file"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_place(
    write: Callable[..., str], name: str, rows: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_problems(write(name, *rows))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", "missing.jsonl"),
        ("builtin:gsm", "is a task for training"),
        ("reasoning-gym:list_function", "did you mean 'list_functions'"),
        ("reasoning-gym:acre?sise=3", "unknown key 'sise'; did you mean 'size'"),
        ("reasoning-gym:acre?size=many", "'size' must be a whole number, not 'many'"),
        ("reasoning-gym:acre?size=1&size=2", "'size' is given twice"),
        ("reasoning-gym:acre?size", "'size' must be a whole number"),
        ("reasoning-gym:acre?3", "unknown key '3'"),
        ("reasoning-gym:arc_1d?size=0", "refuses"),
    ],
)
def test_a_source_that_names_nothing(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_problems(source)


def _cells(row: list[int]) -> str:
    return " ".join(map(str, row))


@pytest.mark.parametrize(
    ("name", "example", "test", "answer"),
    [
        (
            "list_functions",
            lambda pair: f": {pair.input}\nOutput ",
            lambda x: f"\nInput: {x}\nOutput:\n",
            json.loads,
        ),
        (
            "acre",
            lambda pair: f"\n{', '.join(pair.input)} → {pair.output}\n",
            lambda x: f"New test case:\n{', '.join(x)}\n",
            str,
        ),
        (
            "arc_1d",
            lambda pair: f"Input:  {_cells(pair.input)}\nOutput: {_cells(pair.output)}\n",
            lambda x: f"Input:\n{_cells(x)}",
            lambda text: list(map(int, text.split())),
        ),
    ],
)
def test_generated_problems_are_those_of_the_generator(
    name: str, example: Any, test: Any, answer: Any, said: list[str]
) -> None:
    """Written out, the pairs that were read are the question that the generator asks."""
    state = random.getstate()
    problems = load_problems(f"reasoning-gym:{name}?size=30&seed=3")
    assert random.getstate() == state
    assert [problem.name for problem in problems] == [f"{name}-{number}" for number in range(30)]
    assert not [note for note in said if "could not be read" in note]
    again = load_problems(f"reasoning-gym:{name}?size=30&seed=3")
    assert [problem.examples for problem in again] == [problem.examples for problem in problems]
    marks = {"list_functions": "\nOutput ", "acre": " → ", "arc_1d": "Output: "}
    for problem, item in zip(problems, generators._items(name, {"size": 30, "seed": 3}), strict=True):
        question = item["question"]
        assert all(example(pair) in question for pair in problem.examples.pairs)
        assert question.count(marks[name]) == len(problem.examples.pairs)
        assert test(problem.held_out.inputs(ENDED)[0]) in question
        assert problem.held_out.grade([answer(item["answer"])]).right == (True,)


def test_items_that_cannot_be_read_are_counted(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    items = generators._items("list_functions", {"size": 4, "seed": 0})
    items[1]["answer"] = "[1, "
    items[2]["question"] = "What is the rule?"
    monkeypatch.setattr(generators, "_items", lambda *_: items)
    problems = load_problems("reasoning-gym:list_functions?size=4")
    assert [problem.name for problem in problems] == ["list_functions-0", "list_functions-3"]
    assert any("2 of 4 items (50%) could not be read" in note for note in said)
