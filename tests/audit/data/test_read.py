"""The layouts of RL data, and records that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from skillweave.audit.data import signals
from skillweave.audit.data.parts import take_apart
from skillweave.audit.data.read import LONGEST_PROMPT, AuditRow, Malformed, check_columns, chunks, parse_chunk, to_row
from skillweave.errors import UserError

SHOT = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two\nnumbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string", "description": "the first", "enum": ["one", "two"]}},
        },
    },
}
SAID = "add\nAdds two\nnumbers\na\nthe first\none\ntwo"
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "2+2?", "answer": "4"}, "2+2?", "4"),
        ({"question": "2+2?", "answer": 4}, "2+2?", "4"),
        ({"prompt": "2+2?", "reward_model": {"style": "rule", "ground_truth": "4"}}, "2+2?", "4"),
        ({"prompt": "2+2?", "reward_model": '{"ground_truth": "4"}'}, "2+2?", "4"),
        ({"prompt": [{"role": "user", "content": "2+2?"}], "extra_info": {"answer": "4"}}, "2+2?", "4"),
        ({"problem": "2+2?", "solution": "4"}, "2+2?", "4"),
        ({"prompt": "2+2?", "ground_truth": ["4", "four"]}, "2+2?", "4"),
        ({"prompt": "2+2?", "label": True}, "2+2?", "true"),
        ({"instruction": "Add.", "input": "2 2", "output": "4"}, "Add.\n\n2 2", "4"),
        ({"messages": [*SHOT, {"role": "assistant", "content": "4"}]}, "1+1?\n\n2\n\n2+2?", "4"),
        ({"messages": SHOT, "answer": "4"}, "1+1?\n\n2\n\n2+2?", "4"),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, "2+2?", "4"),
        ({"prompt": "2+2?", "chosen": [{"role": "assistant", "content": "4"}]}, "2+2?", "4"),
        ({"system": "Add.", "prompt": "2+2?"}, "Add.\n\n2+2?", ""),
        ({"system": "Add.", "messages": SHOT}, "Add.\n\n1+1?\n\n2\n\n2+2?", ""),
        ({"instruction": "2+2?", "history": [["1+1?", "2"]], "output": "4"}, "1+1?\n\n2\n\n2+2?", "4"),
        ({"instruction": "2+2?", "history": '[["1+1?", "2"]]', "output": "4"}, "1+1?\n\n2\n\n2+2?", "4"),
        ({"prompt": [{"role": "user", "content": ["2", {"type": "image"}, {"text": "+2?"}]}]}, "2+2?", ""),
        ({"prompt": "2+2?", "tools": [TOOL]}, f"{SAID}\n\n2+2?", ""),
        ({"prompt": "2+2?", "tools": json.dumps([TOOL["function"]]), "system": "Add."}, f"{SAID}\n\nAdd.\n\n2+2?", ""),
        ({"prompt": "2+2?", "functions": [{"name": "add", "parameters": None}]}, "add\n\n2+2?", ""),
        ({"prompt": "2+2?", "tools": "add: adds"}, "add: adds\n\n2+2?", ""),
        ({"prompt": "2+2?", "tools": []}, "2+2?", ""),
        ({"messages": [*SHOT, {"role": "assistant", "tool_calls": [CALL]}]}, "1+1?\n\n2\n\n2+2?", 'add\n{"a": 2}'),
        (
            {"messages": [{"role": "assistant", "content": "I add.", "tool_calls": [CALL]}, SHOT[0]]},
            'I add.\nadd\n{"a": 2}\n\n1+1?',
            "",
        ),
    ],
)
def test_each_layout_gives_prompt_and_answer(row: dict[str, object], prompt: str, answer: str) -> None:
    found = to_row(row, "file", 3, {})
    assert (found.prompt, found.answer, found.line) == (prompt, answer, 3)


def test_turns_are_the_places_of_the_messages() -> None:
    found = to_row({"messages": SHOT, "answer": "4", "id": 7, "data_source": "gym"}, "file", 1, {})
    assert [(found.prompt[start:end], by) for start, end, by in found.turns] == [
        ("1+1?", False),
        ("2", True),
        ("2+2?", False),
    ]
    assert (found.id, found.source) == ("7", "gym")


def test_what_asks_begins_behind_the_tools_of_a_row() -> None:
    tool = {"name": "flights", "description": "Find a flight. Book it if the user says so."}
    row = to_row({"prompt": "Compute 2+2.", "tools": [tool]}, "file", 1, {})
    prompt = take_apart(row.prompt, row.turns, row.asked_from)
    assert [row.prompt[clause.start : clause.end] for clause in prompt.requests] == ["Compute 2+2"]
    assert signals.conditions(prompt).value == 1  # a rule in a description is seen
    assert to_row({"prompt": "Compute 2+2."}, "file", 1, {}).asked_from == 0


def test_long_tools_do_not_hide_the_prompt() -> None:
    row = to_row({"prompt": "Compute 2+2.", "tools": "x" * 10 * LONGEST_PROMPT}, "file", 1, {})
    assert row.cut
    assert row.prompt[row.asked_from :].strip() == "Compute 2+2."
    blank = to_row({"prompt": "Compute 2+2.", "tools": "   "}, "file", 1, {})
    assert (blank.prompt, blank.asked_from) == ("Compute 2+2.", 0)


def test_names_and_arguments_may_be_words_of_a_schema() -> None:
    arguments = {"id": "one", "type": "two", "x": {"format": "three"}}
    call = {"type": "function", "id": "call_1", "function": {"name": "add", "arguments": arguments}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    prompt = to_row({"messages": [said, *SHOT[:1]]}, "f", 1, {}).prompt
    assert prompt.split() == ["add", "id", "one", "type", "two", "x", "format", "three", "1+1?"]
    tool = {"name": "add", "parameters": {"type": "object", "properties": {"title": {"type": "string"}}}}
    assert to_row({"prompt": "2+2?", "tools": [tool]}, "f", 1, {}).prompt == "add\ntitle\n\n2+2?"


def test_columns_name_what_is_not_found() -> None:
    row = {"task": {"text": "2+2?"}, "gold": "4", "prompt": "not this"}
    found = to_row(row, "file", 1, {"prompt": "task.text", "answer": "gold"})
    assert (found.prompt, found.answer) == ("2+2?", "4")
    with pytest.raises(UserError, match="did you mean 'prompt'"):
        check_columns({"promt": "task"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "expected an object"),
        ({"text": "2+2?"}, "no prompt"),
        ({"rows": [{"prompt": "2+2?"}]}, "no prompt: .*its 'rows' is a list of rows: a .json file"),
        ({"prompt": ""}, "empty"),
        ({"prompt": 5}, "must be a text"),
        ({"prompt": [{"content": "no role"}]}, "no role"),
        ({"messages": "[{"}, "no JSON"),
        ({"instruction": "hi", "history": ["hi"]}, "'history' must be a list of"),
        ({"instruction": "hi", "history": {"hi": "ho"}}, "'history' must be a list of"),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}, "empty"),
    ],
)
def test_a_record_without_a_readable_prompt_has_a_reason(row: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        to_row(row, "file", 1, {})


def test_bad_lines_are_reported_and_cost_no_other(tmp_path: Path) -> None:
    lines = [b'{"prompt": "a"}', b"{bad", b"", b'{"prompt": "\xff"}', b'{"prompt": "b"}', b'{"x": 1}']
    mac = b"\r".join(lines)  # a carriage return alone ends a line, too
    for name, data in (("d.jsonl", b"\n".join(lines)), ("d.jsonl.gz", gzip.compress(mac)), ("mac.jsonl", mac)):
        file = tmp_path / name
        file.write_bytes(data)
        rows, bad = _all(file, size=2)
        assert [(row.prompt, row.line) for row in rows] == [("a", 1), ("b", 5)]
        assert [one.line for one in bad] == [2, 4, 6]
        assert bad[0].reason.startswith("not valid JSON")
        assert str(file) not in bad[0].reason


def test_tables_datasets_and_folders_give_the_same_records(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1?", "answer": str(n + 1)} for n in range(5)]
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "a.json").write_text(json.dumps(rows[:2]))
    (tmp_path / "folder" / "b.json").write_text(json.dumps({"rows": rows[2:3]}))
    (tmp_path / "folder" / "below" / "c.jsonl").write_text("\n".join(map(json.dumps, rows[3:])))
    (tmp_path / "folder" / "notes.txt").write_text("no data")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved")
    for place in ("folder", "lines.json", "d.parquet", "saved"):
        found, bad = _all(tmp_path / place)
        assert [row.prompt for row in found] == [row["prompt"] for row in rows]
        assert not bad
    with pytest.raises(UserError, match="no split 'test'"):
        list(chunks(tmp_path / "saved", "test"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data file"):
        list(chunks(tmp_path / "empty", "train"))


def _all(path: Path, size: int = 512) -> tuple[list[AuditRow], list[Malformed]]:
    parts = [parse_chunk(chunk, {}) for chunk in chunks(path, "train", size)]
    return [row for rows, _ in parts for row in rows], [one for _, bad in parts for one in bad]
