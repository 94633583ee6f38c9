"""The report on a task before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.micro import micro_tokenizer
from skillweave.errors import UserError
from skillweave.tasks import Task, load_task
from skillweave.tasks.check import Lengths, check_task, summary

OPENS_THOUGHT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)


def task_of(path: Path, rows: list[dict], **more) -> Task:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task({"source": "file", "path": str(path), "splits": {"test": 1, "calibration": 1}, **more})


def rows(count: int) -> list[dict]:
    return [{"prompt": "x" * (index + 1), "answer": "y" * 3} for index in range(count)]


def test_lengths_are_counted_as_they_are_trained(tmp_path: Path) -> None:
    task = task_of(tmp_path / "a.jsonl", rows(20))
    # <user> x... <end> <assistant>, then yyy <end>: 3 and 1 tokens beside the characters.
    report = check_task(task, micro_tokenizer(), max_length=20)
    assert (report.unit, report.measured, report.limit) == ("tokens", 20, 20)
    assert report.prompt == Lengths(median=14, p95=23, longest=23)
    assert report.answer == Lengths(4, 4, 4)
    assert report.beyond == sum(length + 3 + 4 > 20 for length in range(1, 21)) == 7
    assert report.problems == []
    plain = check_task(task)
    assert (plain.unit, plain.prompt.longest, plain.limit, plain.beyond) == ("characters", 20, None, 0)
    (first, learnt), (last, bears_loss) = report.example
    assert first.startswith("<user>x")
    assert first.endswith("<assistant>")
    assert (learnt, last, bears_loss) == (False, "yyy<end>", True)
    text = "\n".join(summary(report))
    assert "18 train, 1 calibration, 1 test rows; verifier exact" in text
    assert "7 of 20 rows (35%) beyond 20 tokens" in text
    assert "20 of 20 gold answers pass the verifier" in text


def test_rows_that_are_all_too_long_are_a_problem(tmp_path: Path) -> None:
    report = check_task(task_of(tmp_path / "a.jsonl", rows(5)), micro_tokenizer(), max_length=4)
    assert report.problems == ["every row is longer than 4 tokens: nothing can be learnt from the task"]
    assert summary(report)[-1].startswith("warning: every row")


def test_a_thought_that_would_be_opened_twice_is_a_problem(tmp_path: Path) -> None:
    opens = micro_tokenizer(OPENS_THOUGHT)
    for answer, count in (("<think>b</think>a", 3), ("b</think>a", 0), ("a", 0)):
        task = task_of(tmp_path / "a.jsonl", [{"prompt": "x" * at, "answer": answer} for at in (1, 2, 3)])
        problems = check_task(task, opens).problems
        assert len(problems) == bool(count)
        assert all(f"{count} of 3 gold answers begin with '<think>'" in problem for problem in problems)
        assert check_task(task, micro_tokenizer()).problems == []


def test_repeats_and_several_answers_are_counted(tmp_path: Path) -> None:
    more = [{"prompt": "x", "answer": "yyy"}, {"prompt": "x", "answer": "z"}, {"prompt": "X", "answer": "yyy"}]
    report = check_task(task_of(tmp_path / "a.jsonl", rows(6) + more))
    assert (report.read, report.duplicates, report.several) == (9, 1, 1)
    assert sum(report.rows.values()) == 8
    assert sum(report.prompts.values()) == 7
    assert any("1 of 9 rows (11%) are exact repeats and were dropped" in note for note in report.notes)


def test_a_gold_answer_that_fails_its_verifier_is_named_by_line(tmp_path: Path) -> None:
    never_bad = {"verifier": "regex", "options": {"pattern": "^(?!bad){answer}$"}}
    data = [*rows(3), {"prompt": "what?", "answer": "bad"}, {"prompt": "and?", "answer": "good"}]
    report = check_task(task_of(tmp_path / "a.jsonl", data, **never_bad))
    assert (report.judged, report.failed, report.unanswered) == (5, 1, 0)
    assert [(failure.where, failure.score) for failure in report.failures] == [(f"{tmp_path}/a.jsonl, line 4", 0.0)]
    assert "1 of 5 gold answers fail their own verifier" in report.problems[0]
    assert "4 of 5" not in "".join(summary(report)[:-1])  # said once, as the warning


def test_rows_of_code_without_a_gold_answer_are_counted(tmp_path: Path) -> None:
    cases = [{"call": "f(1)", "value": 1}]
    data = [{"prompt": f"f{n}", "answer": "def f(x):\n    return x", "cases": cases} for n in range(3)]
    report = check_task(task_of(tmp_path / "code.jsonl", [*data, {"prompt": "none", "cases": cases}], verifier="code"))
    assert (report.judged, report.failed, report.unanswered, report.problems) == (3, 0, 1, [])
    assert summary(report)[-1] == "3 of 3 gold answers pass the verifier; 1 rows have none"


def test_of_a_large_task_an_even_sample_is_looked_at_and_it_is_said(tmp_path: Path) -> None:
    report = check_task(task_of(tmp_path / "large.jsonl", rows(700)))
    assert (report.measured, report.judged) == (500, 500)
    assert report.prompt.longest > 690
    assert "(an even sample: 500 of 700 rows)" in summary(report)[1]


def test_the_row_that_is_shown_has_tools_and_calls_without_a_base(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    said = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "1"}]
    messages = [{"role": "user", "content": "x"}, *said, {"role": "assistant", "content": "one"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages, "tools": [{"name": "f"}]}))
    spec = {"source": "file", "path": str(tmp_path / "a.jsonl"), "splits": {"test": 0, "calibration": 0}}
    (before, learnt), gold = check_task(load_task(spec)).example
    assert before.splitlines() == [
        'tools: [{"type": "function", "function": {"name": "f"}}]',
        "user: x",
        'assistant: <tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "tool: 1",
        "assistant: ",
    ]
    assert (learnt, gold) == (False, ("one", True))


def test_tools_that_the_template_cannot_write_are_refused_by_line(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    task = task_of(tmp_path / "a.jsonl", [{**row, "tools": tools} for row in rows(4)])
    assert check_task(task).with_tools == 4
    with pytest.raises(UserError, match=r"a\.jsonl, line \d: .*tools"):
        check_task(task, micro_tokenizer(chat_template=None))


@pytest.mark.parametrize("spec", ["builtin:caesar", "builtin:json_calls", "builtin:hops", "reasoning-gym:chain_sum"])
def test_generators_pass_their_own_verifier(spec: str) -> None:
    source, _, name = spec.partition(":")
    key = "name" if source == "builtin" else "generator"
    report = check_task(load_task({"source": source, key: name, "splits": {"train": 20, "calibration": 2, "test": 5}}))
    assert (report.read, report.failed, report.judged, report.problems) == (0, 0, 27, [])
