"""``skillweave tasks``: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.terminal import made, refused, run

SPLITS = "splits: {test: 1, calibration: 1}\n"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"prompt": f"say {n}", "answer": f"{n}"} for n in (*range(8), 3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(f"source: file\npath: {tmp_path / 'data.jsonl'}\n{SPLITS}")
    return tmp_path / "task.yaml"


def test_check_shows_the_task_and_marks_what_is_learnt(task: Path, micro_base: Path) -> None:
    shown = made("tasks", "check", task, "--base", micro_base, "--max-length", 11, columns=200).out
    assert "data: verifier exact, 9 rows read, 1 dropped as exact repeats" in shown
    assert "train: 6 rows" in shown
    assert "prompts 8 tokens" in shown
    assert "none of 8 rows beyond 11 tokens" in shown
    assert "8 of 8 gold answers pass the verifier" in shown
    assert "<user>say " in shown
    assert shown.rstrip().endswith("<end>⟧")


def test_check_ends_with_1_where_gold_answers_fail(task: Path) -> None:
    with task.open("a") as file:
        file.write("verifier: regex\noptions: {pattern: 'x{answer}'}\n")
    ran = run("tasks", "check", task)
    assert ran.code == 1
    assert "8 of 8 gold answers fail their own verifier" in " ".join(ran.out.split())


def test_json_holds_the_same(task: Path, micro_base: Path) -> None:
    report = json.loads(made("tasks", "check", task, "-b", micro_base, "--json").out)
    assert report["duplicates"] == 1
    assert report["rows"] == {"train": 6, "calibration": 1, "test": 1}
    assert report["example"][-1][1] is True
    listed = json.loads(made("tasks", "list", "--json").out)
    assert {"builtin:caesar", "builtin:hops"} <= {row["task"] for row in listed}
    assert "builtin:caesar" in made("tasks", "list").out


def builtin_with(task: Path, config: str) -> Path:
    path = task.with_name("builtin.yaml")
    path.write_text(f"source: builtin\nname: caesar\nconfig: {{{config}}}\n")
    return path


def test_mistakes(task: Path) -> None:
    assert "--max-length counts tokens" in refused("tasks", "check", task, "--max-length", 5)
    for settings, said in [
        (
            "verifier: numeric\noptions: {tolerence: 1}\n",
            "line 5: options: verifier 'numeric': unknown key 'tolerence'",
        ),
        ("verifier: regex\n", "options: verifier 'regex': the key 'pattern' is missing"),
        ("verifier: mix\noptions: {parts: [{verifier: exact}]}\n", "a mix needs at least 2 parts, found 1"),
        ("verifier: exactly\n", "line 4: verifier: there is no verifier 'exactly'; did you mean 'exact'?"),
    ]:
        wrong = task.with_name("wrong.yaml")
        wrong.write_text(task.read_text() + settings)
        assert said in " ".join(refused("tasks", "check", wrong).split())
    assert "write dataset:" in refused("tasks", "check", task.parent)
    assert "is a file, not a dataset" in refused("tasks", "check", f"dataset:{task.with_name('data.jsonl')}")
    assert "config of builtin:caesar" in refused("tasks", "check", builtin_with(task, "leest: 3"))
    assert "names no task" in refused("tasks", "check", "data.docx")
