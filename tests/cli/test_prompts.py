"""Prompts from a file, with the tools that a row brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chat_families import CALLS, TOOLS
from skillweave.cli.prompts import read_prompts
from skillweave.errors import UserError

ASKED = {"role": "user", "content": "Weather in Rome?"}
CALLED = {"role": "assistant", "content": None, "tool_calls": CALLS}


def read(folder: Path, *rows: object) -> list:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(file)


def test_the_tools_of_a_row_come_with_its_prompt(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi"},
        {"prompt": "hi", "tools": TOOLS},
        {"messages": [ASKED, CALLED], "tools": TOOLS, "pack": "a"},
    ]
    assert read(tmp_path, *rows) == [
        ("hi", None),
        ({"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}, None),
        ({"messages": [ASKED, CALLED], "tools": TOOLS}, "a"),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "hi", "tools": "weather"}, "line 1: 'tools' must be a list of tools"),
        ({"prompt": "hi", "tools": []}, "'tools' must be a list"),
        ({"messages": [{"role": "assistant", "content": None}]}, "is no prompt"),
        ({"messages": [{"content": "x"}]}, "is no prompt"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_line(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, row)
