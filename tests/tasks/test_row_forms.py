"""Rows of other tools: each form, file format and accepted answer, and errors that name the line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from skillweave.errors import UserError
from skillweave.tasks import Entry, Task, load_task
from skillweave.tasks.readers import read_dataset, read_rows

ONE = {"test": 1, "calibration": 0, "train": 0}
USER, SYSTEM = {"role": "user", "content": "hi"}, {"role": "system", "content": "be kind"}
SAID = {"role": "assistant", "content": "he"}
HO, HU = {"role": "assistant", "content": "ho"}, {"role": "assistant", "content": "hu"}
DEVELOPER = {"role": "developer", "content": "be brief"}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def called(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


def said(**more: Any) -> dict[str, Any]:
    """A conversation that ends with a message of the assistant."""
    return {"messages": [USER, {"role": "assistant", **more}]}


def load(path: Path, **more: Any) -> Task:
    return load_task({"source": "file", "path": str(path), "splits": ONE, **more})


def only(tmp_path: Path, row: Any, **more: Any) -> Entry:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row))
    return load(path, **more).split("test")[0]


def turns(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": who, "value": what} for who, what in said]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"conversations": turns(("human", "hi"), ("gpt", "ho"))}, [USER], "ho"),
        ({"conversations": json.dumps(turns(("human", "hi"), ("gpt", "ho")))}, [USER], "ho"),
        ({"conversations": turns(("system", "be kind"), ("user", "hi"), ("assistant", "ho"))}, [SYSTEM, USER], "ho"),
        ({"system": "be kind", "conversations": turns(("human", "hi"), ("gpt", "ho"))}, [SYSTEM, USER], "ho"),
        ({"conversations": [USER, {"role": "assistant", "content": "ho"}]}, [USER], "ho"),
        ({"instruction": "hi", "output": "ho"}, "hi", "ho"),
        ({"instruction": "hi", "input": "", "output": "ho", "text": "the whole"}, "hi", "ho"),
        ({"instruction": "hi", "input": "there", "output": "ho"}, "hi\n\nthere", "ho"),
        *(
            (
                {"instruction": "hi", "history": history, "output": "ho"},
                [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, USER],
                "ho",
            )
            for history in ([["a", "b"]], '[["a", "b"]]')
        ),
        ({"prompt": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}], "answer": "ho"}, "hi", "ho"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "answer": "ho"}, [USER], "ho"),
        ({"prompt": "hi", "completion": [{"role": "assistant", "content": "ho"}]}, "hi", "ho"),
        ({"prompt": "hi", "answer": 42}, "hi", "42"),
        ({"prompt": "hi", "answer": 3.5}, "hi", "3.5"),
        ({"prompt": "hi", "answer": True}, "hi", "true"),
        ({"messages": [USER, {"role": "assistant", "content": "ho", "weight": 1}], "prompt": None}, [USER], "ho"),
        (
            {
                "messages": [
                    USER | {"train": False, "prefix": True},
                    SAID | {"weight": 0, "prefix": True},
                    USER,
                    {"role": "assistant", "content": "ho", "thinking": False, "reasoning": [], "loss": 0.3},
                ]
            },
            [USER, SAID, USER],
            "ho",
        ),
        ({"prompt": [DEVELOPER, USER], "answer": "ho"}, [DEVELOPER, USER], "ho"),
    ],
)  # fmt: skip
def test_forms(tmp_path: Path, row: dict, prompt: Any, answer: str) -> None:
    entry = only(tmp_path, row)
    assert (entry.prompt, entry.answer) == (prompt, answer)
    assert "answers" not in entry.metadata


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "human", "content": "hi"}]}, r"message 1 has the unknown role 'human'; write 'user'"),
        ({"messages": [{"role": "function", "content": "hi"}]}, r"unknown role 'function'; write 'tool'"),
        ({"messages": [{"role": "usr", "content": "hi"}]}, r"unknown role 'usr'; did you mean 'user'"),
        ({"messages": turns(("human", "hi"))}, "belong in a list called 'conversations'"),
        ({"conversations": turns(("oracle", "hi"))}, "message 1 is from 'oracle', which is unknown"),
        ({"conversations": [{"from": ["human"], "value": "hi"}]}, r"message 1 is from \['human'\], which is unknown"),
        ({"instruction": "hi", "output": "x", "history": ["a"]}, "'history' must be a list of .*, found 'a'"),
        ({"instruction": "hi", "output": "x", "history": {"a": "b"}}, "'history' must be a list of .*, found {'a'"),
        ({"conversations": turns(("human", "hi"))}, "the last message must be the assistant's"),
        ({"conversations": "hi"}, "'conversations' is a text that holds no JSON"),
        ({"prompt": [IMAGE], "answer": "x"}, "'image_url'.*only text"),
        ({"prompt": "hi", "answer": "x", "images": ["x.png"]}, "has 'images', which is not supported"),
        ({"messages": [USER], "functions": [TOOL]}, "has 'functions', which is not supported: write them as 'tools'"),
        (said(content="x", function_call={"name": "f"}), "message 2 has 'function_call'.*'tool_calls'"),
        (said(content="x", weight=0.5), "message 2 has 'weight'"),
        (said(tool_calls=[{"name": "f", "arguments": "{"}]), "call 1: 'arguments' is a text that holds no JSON"),
        (said(tool_calls=[{"name": "f", "arguments": "[1]"}]), "'arguments' must be an object"),
        (said(tool_calls=[{"arguments": {}}]), "message 2, call 1 needs a 'function' with a 'name'"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [called()]}]}, "only the assistant can have"),
        (said(), "message 2 must have the texts 'role' and 'content'"),
        ({"prompt": "hi", "answer": "x", "tools": "weather"}, "'tools' is a text that holds no JSON"),
        ({"prompt": "hi", "answer": "x", "tools": [{"type": "web_search"}]}, "tool 1 is of the type 'web_search'"),
        ({"prompt": "hi", "answer": "x", "tools": [{"description": "x"}]}, "tool 1 needs a 'function' with a 'name'"),
        ({"prompt": "hi", "answer": []}, "the list of answers is empty"),
        ({"prompt": "hi", "answer": ["a", ""]}, "an answer of the list must be a text with something in it"),
        ({"prompt": "hi", "answer": float("nan")}, "must be a text with something in it"),
        ({"prompt": "hi", "completion": "x", "label": False}, "'label' that is true or false"),
        ({"prompt": "hi", "chosen": "x"}, "has 'chosen' but no 'rejected'"),
        ({"prompt": "hi", "chosen": "x", "rejected": None}, r"no 'rejected' \(its 'rejected' is empty\)"),
        ({"prompt": "hi", "chosen": "x", "rejected": ["a", "b"]}, "'rejected' must be one answer"),
        ({"prompt": "hi", "chosen": HO | {"weight": 0}, "rejected": HU}, "has 'weight'"),
        ({"prompt": "hi", "chosen": HO, "rejected": HU | {"prefix": True}}, "has 'prefix'"),
        ({"prompt": "hi", "chosen": "\u00e9", "rejected": "e\u0301"}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "hi", "answer": None}, r"neither 'completion' nor 'answer' \('answer' is empty\)"),
        ({"prompt": "hi", "label": "x"}, r"where one of 'label' is it, set columns: \{answer: KEY\}"),
        ({"prompt": None, "answer": "x"}, "'prompt' is empty"),
        ({"prompt": 5, "answer": "x"}, "'prompt' must be a text or a list of messages, found 5"),
        ({"prompt": ["a"], "answer": "x"}, "'prompt' must be a text or a list of messages"),
        ({"prompt": "hi", "answer": "<think>a</think>"}, "the answer has only thoughts"),
        ({"conversations": [{"from": "human", "text": "x"}]}, "message 1 has no 'value', found 'from', 'text'"),
        *((said(content="x", **{key: False}), f"message 2 has '{key}'") for key in ("train", "training", "loss")),
        (said(content="x", weight=0), "message 2 has 'weight'"),
        (said(content="x", prefix=True), "message 2 has 'prefix'.*learnt with its end"),
        (said(content="x", thinking=["y"]), "message 2: 'thinking' must be a text"),
        (said(content="", thinking="y"), "in addition to its reasoning"),
        ({"prompt": "hi", "answer": "x", "tools": TOOL}, r"must be a list of tools.*put it in a list"),
        ({"prompt": "hi", "answer": "x", "tools": [TOOL, TOOL]}, "two tools called 'weather'"),
        ({"prompt": "hi", "answer": "x", "tools": [{"name": "f", "parameters": []}]}, "'parameters' must be an object"),
        (5, "expected an object with keys.*found 5"),
        ({"instruction": "hi"}, "has 'instruction' but no 'output'"),
        ({"messages": [USER], "answer": "x"}, r"both 'messages' and 'answer': .*columns: \{answer: null\}"),
        ({"prompt": "hi", "chosen": "x", "rejected": "x"}, "'chosen' and 'rejected' are the same"),
        ({"chosen": "a", "rejected": "b"}, "without a 'prompt'"),
        ({"system": 3, "prompt": "hi", "answer": "x"}, "'system' must be a text"),
        ({"system": "x", "prompt": [SYSTEM, USER], "answer": "x"}, "a system prompt of their own"),
        ({"q": "hi", "a": "x"}, r"name them: columns: \{prompt: KEY, answer: KEY\}"),
        # Half a character, wherever it stands.
        ({"prompt": "\ud83d", "answer": "x"}, "'prompt' holds half a character"),
        ({"prompt": "hi", "answer": ["x", "\udc00"]}, "'answer' holds half a character"),
        ({"prompt": "hi", "answer": "x", "\ud83d": 1}, "a key holds half a character"),
        ({"prompt": "hi", "answer": "x", "note": {"a\udc00": 1}}, "'note' a key holds half a character"),
        ({"prompt": "hi", "answer": "x", "tools": json.dumps([{"name": "f\ud83d"}])}, "'name' holds half a character"),
    ],
)  # fmt: skip
def test_what_a_model_could_not_be_shown_is_refused_by_line(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"one.jsonl, line 1:.*({message})"):
        only(tmp_path, row)


def test_tools_and_calls_are_kept_in_one_form(tmp_path: Path) -> None:
    given = {"id": "a", "function": {"name": "weather", "arguments": '{"town": "Rome"}'}}
    messages = [
        *said(content=None, tool_calls=[given])["messages"],
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "assistant", "content": "It is sunny."},
    ]  # fmt: skip
    entry = only(tmp_path, {"messages": messages, "tools": json.dumps([TOOL["function"]])})
    assert entry.prompt == {
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [{"id": "a", **called(town="Rome")}]},
            {"role": "tool", "tool_call_id": "a", "content": "sun"},
        ],
        "tools": [TOOL],
    }
    assert entry.answer == "It is sunny."
    json.dumps(entry.prompt)
    sharegpt = turns(("human", "hi"), ("function_call", '{"name": "weather", "arguments": {"town": "Rome"}}'))
    told = only(tmp_path, {"conversations": sharegpt, "tools": json.dumps([TOOL])})
    assert told.prompt == {"messages": [USER], "tools": [TOOL]}
    assert told.answer == {"role": "assistant", "content": "", "tool_calls": [called(town="Rome")]}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('<tool_call>{"name": "weather", "arguments": {"town": "Rome"}}</tool_call>', 1),
        ('Let me see.<tool_call>{"arguments": {"town": "Rome"}, "name": "weather"}</tool_call>', 1),
        ('<tool_call>{"name": "weather", "arguments": {"town": "Oslo"}}</tool_call>', 0),
        ('<tool_call>{"name": "wind", "arguments": {"town": "Rome"}}</tool_call>', 0),
        ('<tool_call>{"name": "weather", "arguments": {"town": "Rome"}}</tool_call>' * 2, 0),
        ("It is sunny.", 0),
        ("", 0),
        ('<tool_call>{"name": "weather"', 0),
    ],
)
def test_a_call_as_gold_answer_is_compared_by_name_and_arguments(tmp_path: Path, answer: str, score: float) -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [called(town="Rome")]}], "tools": [TOOL]}
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(row))
    for verifier in ("exact", "json"):
        task = load(path, verifier=verifier)
        assert task.score(answer, task.split("test")[0]) == score
    with pytest.raises(UserError, match="line 1: the answer is a tool call, which the verifier 'numeric' cannot judge"):
        load(path, verifier="numeric")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_learnt_and_only_the_content_is_judged(tmp_path: Path, key: str) -> None:
    gold = {"role": "assistant", "content": "4", key: "2 and 2"}
    path = tmp_path / "thoughts.jsonl"
    path.write_text(json.dumps({"messages": [USER, gold]}))
    task = load(path)
    (entry,) = task.split("test")
    assert entry.answer == gold
    assert [task.score(text, entry) for text in ("4", "5")] == [1, 0]


def test_a_list_of_answers_are_all_right_and_the_first_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "capitals.jsonl"
    path.write_text(json.dumps({"prompt": "Capital?", "answer": ["Paris", "paris", "Paris", 7]}))
    task = load(path)
    (entry,) = task.split("test")
    assert (entry.answer, entry.accepted) == ("Paris", ["Paris", "paris", "7"])
    assert [task.score(text, entry) for text in ("Paris", "paris", "7", "PARIS")] == [1, 1, 1, 0]


def test_with_the_verifier_json_an_array_as_answer_is_not_taken_for_several(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: the answer is a list.*as a text: \"\[1, 2\]\""):
        only(tmp_path, {"prompt": "x", "answer": [1, 2]}, verifier="json")
    assert only(tmp_path, {"prompt": "x", "answer": ["[1, 2]", "[2, 1]"]}, verifier="json").accepted == [
        "[1, 2]",
        "[2, 1]",
    ]
    assert only(tmp_path, {"prompt": "x", "answer": {"a": 1}}, verifier="json").answer == '{"a": 1}'


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "hi", "chosen": "ho", "rejected": "hu"}, "hi"),
        ({"prompt": [USER], "chosen": [HO], "rejected": [HU]}, [USER]),
        ({"chosen": [SYSTEM, USER, HO], "rejected": [SYSTEM, USER, HU]}, [SYSTEM, USER]),
        ({"prompt": "hi", "chosen": [USER, HO], "rejected": [USER, HU], "score_chosen": 5}, "hi"),
        ({"prompt": "hi", "chosen": [HO | {"weight": 1}], "rejected": [HU | {"weight": 0}]}, "hi"),
        ({"prompt": "hi", "chosen": HO, "rejected": HU | {"train": False}}, "hi"),
    ],
)
def test_a_preference_keeps_what_is_rejected(tmp_path: Path, row: dict, prompt: Any) -> None:
    entry = only(tmp_path, row)
    assert (entry.prompt, entry.answer, entry.metadata["rejected"]) == (prompt, "ho", "hu")


def test_a_preference_whose_sides_begin_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: without a 'prompt', 'chosen' and 'rejected' must be conversations"):
        only(tmp_path, {"chosen": [USER, HO], "rejected": [SYSTEM, USER, HU]})
    with pytest.raises(UserError, match="line 1: 'rejected' begins with other messages than the 'prompt'"):
        only(tmp_path, {"prompt": "hi", "chosen": [USER, HO], "rejected": [SYSTEM, USER, HU]})


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"q": "hi", "label": 3}, {"prompt": "q", "answer": "label"}),
        ({"question": "old", "q": "hi", "answer": 3}, {"prompt": "q"}),
        ({"c": {"q": "hi"}, "answers": {"text": ["3", "three"]}}, {"prompt": "c.q", "answer": "answers.text"}),
        ({"prompt": "hi", "messages": [USER], "answer": "3"}, {"messages": None}),
        ({"ask": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "3"}]}, {"conversations": "ask"}),
    ],
)  # fmt: skip
def test_columns_name_what_stands_for_what(tmp_path: Path, row: dict, columns: dict) -> None:
    entry = only(tmp_path, row, columns=columns)
    assert entry.prompt in ("hi", [USER])
    assert entry.answer == "3"


def test_a_column_that_is_not_there_or_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: has no column 'ask' .*it has 'q', 'a'"):
        only(tmp_path, {"q": "hi", "a": "x"}, columns={"prompt": "ask"})
    for columns, message in [
        ({"promt": "q"}, "no part of a row is called 'promt'; did you mean 'prompt'"),
        ({"q": "prompt"}, r"our name goes on the left: write \{prompt: q\}"),
        ({"prompt": "q", "answer": "q"}, "the key 'q' of the rows is named for two parts"),
    ]:
        with pytest.raises(UserError, match=message):
            only(tmp_path, {"q": "hi", "a": "x"}, columns=columns)


def test_keys_of_messages_that_no_template_may_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "extra.jsonl"
    path.write_text(json.dumps({"prompt": [USER | {"time": 3, "name": "Ann", "note": None}], "answer": "x"}))
    assert load(path).notes == [
        "1 messages have the key 'time', which counts only where the base's chat template reads it"
    ]


@pytest.mark.parametrize(
    ("row", "notes"),
    [
        ({"prompt": "hi", "answer": "x", "id": 3, "source": "web"}, ["keys of the rows that are not used: id, source"]),
        (
            {"prompt": "hi", "answer": "x", "system_prompt": "be kind"},
            [
                "keys of the rows that are not used: system_prompt",
                "if 'system_prompt', in 1 rows, is what we call 'system', set columns: {system: system_prompt}",
            ],
        ),
        (said(content="x", time=3, loss=True, name=None), ["keys of the rows that are not used: answer.time"]),
        (
            {"prompt": "hi", "completion": [{"role": "assistant", "content": "x", "time": 3, "weight": 1}]},
            ["keys of the rows that are not used: answer.time"],
        ),
        (
            {"prompt": "hi", "answer": "x", "tools": [TOOL], "tool_choice": "auto"},
            ["keys of the rows that are not used: tool_choice"],
        ),
        ({"prompt": "hi", "answer": "NaN"}, ["warning: 1 rows have the answer 'NaN', which tables write"]),
        (said(tool_calls=[called()]) | {"tools": [{"name": "wind"}]}, ["warning: 1 rows call a tool that the row's"]),
        (said(tool_calls=[called()]) | {"tools": [TOOL]}, []),
    ],
)
def test_what_is_not_used_or_odd_is_told(tmp_path: Path, row: dict, notes: list[str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    found = load(tmp_path / "a.jsonl").notes
    assert [one[: len(note)] for one, note in zip(found, notes, strict=True)] == notes


def test_thoughts_in_a_gold_answer_are_learnt_and_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "thoughts.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 2?", "answer": "<think>two and two</think>4"}))
    for verifier, right in (("exact", "4"), ("numeric", "It is 4.")):
        task = load(path, verifier=verifier)
        (entry,) = task.split("test")
        assert entry.answer == "<think>two and two</think>4"
        assert [task.score(text, entry) for text in (right, f"<think>5?</think>{right}", "5")] == [1, 1, 0]
    kept = load(path, thoughts="keep")
    assert [kept.score(text, kept.split("test")[0]) for text in ("4", "<think>two and two</think>4")] == [0, 1]


def test_a_system_prompt_of_the_task_stands_before_every_prompt(tmp_path: Path) -> None:
    assert only(tmp_path, {"prompt": "hi", "answer": "x"}, system="be kind").prompt == [SYSTEM, USER]
    with pytest.raises(UserError, match="line 1: the messages begin with a system prompt of their own"):
        only(tmp_path, {"prompt": [SYSTEM, USER], "answer": "x"}, system="be kind")
    with pytest.raises(UserError, match="line 1: has a 'system' prompt of its own, and the task has another"):
        only(tmp_path, {"system": "x", "prompt": "hi", "answer": "x"}, system="be kind")
    builtin = load_task({"source": "builtin", "name": "caesar", "system": "be kind", "splits": ONE}).split("test")[0]
    assert builtin.prompt[0] == SYSTEM


ROWS = [{"prompt": f"ask, {n}?", "answer": f"{n}.50\nline"} for n in range(4)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("a.JSONL", "\n".join(map(json.dumps, ROWS))),
        ("mac.jsonl", "\r".join(map(json.dumps, ROWS))),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("data.json", json.dumps({"version": "1", "data": ROWS}, indent=2)),
        ("data.json", json.dumps({"errors": [], "data": ROWS, "warnings": []})),
        ("train.json", json.dumps({"train": ROWS})),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
        ("a.csv", "prompt,answer\n" + "".join(f'"{row["prompt"]}","{row["answer"]}"\n' for row in ROWS)),
        ("a.tsv", "prompt\tanswer\n" + "".join(f'{row["prompt"]}\t"{row["answer"]}"\n' for row in ROWS)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_kind_of_text_file(tmp_path: Path, name: str, text: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else b"\xef\xbb\xbf" + text.encode())
    if name != "a.JSONL":
        short = load_task({"source": "file", "path": str(path), "splits": {"test": 1, "calibration": 1}})
        assert short.name == name.partition(".")[0]
    task = load(path, splits={"test": 4, "calibration": 0, "train": 0})
    assert {(e.prompt, e.answer) for e in task.split("test")} == {(r["prompt"], r["answer"]) for r in ROWS}


def test_a_packed_file_needs_the_name_of_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b'{"prompt": "a", "answer": "b"}\n'))
    with pytest.raises(UserError, match=r"packed with gzip: give it a name that ends with \.gz"):
        list(read_rows(path))


def test_floats_of_32_bits_are_the_decimals_that_were_written(tmp_path: Path) -> None:
    """Their values in 64 bits, 0.10000000149011612, would be learnt, and no answer would match them."""
    row = {"prompt": "a", "answer": 0.1, "cases": [{"limit": 2.7}], "whole": 3.0, "double": 0.1}
    narrow, wide = pyarrow.float32(), pyarrow.float64()
    cases = pyarrow.list_(pyarrow.struct({"limit": pyarrow.float16()}))
    types = {"prompt": pyarrow.string(), "answer": narrow, "cases": cases, "whole": narrow, "double": wide}
    table = pyarrow.Table.from_pylist([row], schema=pyarrow.schema(types))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    read = [*read_rows(tmp_path / "a.parquet"), *read_dataset(str(tmp_path / "saved"), "train", None)]
    assert [found for _, found in read] == [row, row]


def test_parquet_with_what_a_table_adds(tmp_path: Path) -> None:
    calls = [called(town="Rome"), called(day=3)]  # in a table each call has both arguments, one of them null
    rows = [{"messages": [USER | {"content": f"hi {n}"}, {"role": "assistant", "tool_calls": [call]}], "tools": [TOOL]}
            for n, call in enumerate(calls)]  # fmt: skip
    for row in rows:
        row["tools"][0]["function"]["parameters"] = {"type": "object"}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    task = load(path, splits={"test": 2, "calibration": 0, "train": 0})
    found = [entry.answer["tool_calls"][0]["function"]["arguments"] for entry in task.split("test")]
    assert sorted(found, key=str) == [{"day": 3}, {"town": "Rome"}]
    path.write_bytes(b"no table")
    with pytest.raises(UserError, match="not a Parquet file"):
        load(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,answer\nx,y,z\n", "a.csv, line 2: the row has another number of cells"),
        ("a.csv", "prompt,answer\nx\n", "a.csv, line 2: the row has another number of cells"),
        ("a.csv", 'prompt,answer\n"x,y\nu,v\n', "a.csv, line 2: the row that begins here is not valid CSV"),
        ("a.csv", "prompt,prompt\nx,y\n", "'prompt' stands twice in the header"),
        ("a.csv", "prompt,answer\nx,\n", "line 2: has a 'prompt' but neither"),
        ("a.csv", "", "is empty"),
        ("a.json", "[1,\n2", "a.json, line 2: not valid JSON"),
        ("a.json", "[]", "is empty"),
        ("a.json", "[1]", "a.json, row 1: expected an object"),
        ("a.json", '{"data": [{"prompt": "x"}]}', "a.json, 'data', row 1: has a 'prompt' but neither"),
        ("a.json", '{"data": []}', "is empty"),
        ("a.json", '{"ours": [{"prompt": "x"}]}', "one object, whose 'ours' is a list of rows: write the list"),
        ("a.json", '{"train": [{}], "test": [{}]}', "one object, whose 'train', 'test' are lists of rows: write"),
        ("a.json", '{"question": "x", "data": [{}]}', "one object, whose 'data' is a list of rows: write the list"),
        ("a.jsonl", '{"data": [{"prompt": "x"}]}', "line 1: .*its 'data' is a list of rows: a .json file with this"),
        ("a.json", '{\n"prompt": "x", "answer": "y"\n}', "one object; a .json file must be an array of rows"),
        (
            "a.jsonl",
            '[{"prompt": "x", "answer": "y"}]',
            "line 1: expected an object with keys, found list .* is named .json",
        ),
        ("a.jsonl", '{"prompt": "x", "prompt": "z", "answer": "y"}', "line 1: the key 'prompt' appears twice"),
        ("a.csv", "prompt;answer\nx;y\n", "line 1: the header is one column, 'prompt;answer', that holds ';'"),
        ("a.tsv", "prompt,answer\nx,y\n", "line 1: the header is one column"),
        ("a.csv", "prompt, answer\nx, y\n", "line 1: the column ' answer' begins or ends with white space"),
        ("a.csv", "prompt,answer\nx,y\ncaf\udce9,y\n", "a.csv, line 3: not UTF-8 text .*save the file as UTF-8"),
        ("a.jsonl", '{"prompt": "x", "answer": "y"}\n"\udce9"', "a.jsonl, line 2: not UTF-8 text"),
        ("a.json", '["\udce9"]', "a.json, line 1: not UTF-8 text"),
        ("a.json", '[{"prompt": "x"}]', "a.json, row 1: has a 'prompt' but neither"),
        ("a.json", '[{"prompt": "\\ud83d", "answer": "x"}]', "row 1: 'prompt' holds half a character"),
        ("a.jsonl", '[{"prompt": "x"}', "line 1: not valid JSON .*an array of rows is a .json file"),
        ("a.jsonl", "[" * 100_000, "line 1: .*JSON"),
        ("a.jsonl", '{"prompt": "x", "answer": 1' + "0" * 5000 + "}", "line 1: this JSON cannot be read"),
        ("a.csv", '"a"b,c\n1,2\n', "line 1: the row that begins here is not valid CSV"),
        ("a.csv", "prompt,answer\nx\0,y\n", "line 2: a NUL character"),
        ("a.jsonl.gz", "{}", "could not be read after line 0.*remove .gz from its name|could not be opened"),
    ],
)
def test_a_file_that_is_damaged_is_named_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        load(tmp_path / name)


def test_the_names_of_class_labels_are_the_answers(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).save_to_disk(str(tmp_path / "d"))
    spec = {
        "source": "dataset",
        "path": str(tmp_path / "d"),
        "splits": ONE,
        "columns": {"prompt": "text", "answer": "label"},
    }
    assert load_task(spec).split("test")[0].answer == "good"
