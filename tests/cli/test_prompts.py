"""Prompts from a file, with the tools of each row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.chat_families import CALLS, TOOLS
from skillweave.cli.prompts import read_prompts
from skillweave.errors import UserError

ASKED = {"role": "user", "content": "Weather in Rome?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": CALLS}
RESULT = {"role": "tool", "content": "sun"}


def read(folder: Path, *rows: object) -> list:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [(row.prompt, row.pack) for row in read_prompts(file)]


def test_the_tools_of_a_row_come_with_its_prompt(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi"},
        {"prompt": "hi", "tools": TOOLS},
        {"messages": [ASKED, CALLED | {"content": None}, RESULT], "tools": TOOLS, "pack": "a"},
    ]
    assert read(tmp_path, *rows) == [
        ("hi", None),
        ({"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}, None),
        ({"messages": [ASKED, CALLED, RESULT], "tools": TOOLS}, "a"),
    ]


def test_the_system_prompt_of_a_row_comes_first_and_keys_without_a_meaning_are_told(tmp_path: Path, capsys) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [{"prompt": "hi", "system": "Be brief."}, {"messages": [ASKED], "system": "Be brief.", "max_tokens": 5}]
    hi = {"role": "user", "content": "hi"}
    assert read(tmp_path, *rows) == [([system, hi], None), ([system, ASKED], None)]
    assert "1 of 2 rows (50%) have keys that are not read, such as 'max_tokens'" in " ".join(
        capsys.readouterr().err.split()
    )
    with pytest.raises(UserError, match="line 1: the messages begin with a system prompt of their own"):
        read(tmp_path, {"messages": [system, ASKED], "system": "Be long."})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "hi", "tools": "weather"}, "line 1: 'tools' is a text that holds no JSON"),
        ({"prompt": "hi", "tools": []}, "'tools' must be a list"),
        ({"messages": [{"role": "assistant", "content": None}]}, "message 1 must have the texts 'role' and 'content'"),
        ({"messages": [{"content": "x"}]}, "message 1 must have the texts 'role' and 'content'"),
        ({"messages": [{"role": "User", "content": "x"}]}, "unknown role 'User'; did you mean 'user'"),
        ({"messages": [ASKED, {"role": "assistant", "content": "x"}]}, "the last message is the assistant's"),
        ({"prompt": 5}, "line 1: 5 is no prompt"),
        ({"prompt": " "}, "line 1: the prompt is empty"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_line(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, row)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"prompt": "one"}, {"prompt": "two"}]'),
        ("a.csv", "prompt\none\ntwo\n"),
        ("a.txt", "one\n\ntwo\n"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}]}]}\n{"prompt": "two"}',
        ),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = [asked if isinstance(asked, str) else asked[-1]["content"] for asked, _, _ in read_prompts(tmp_path / name)]
    assert found == ["one", "two"]
