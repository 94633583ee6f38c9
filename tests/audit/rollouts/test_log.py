"""Logs of rollouts: what is read, what is counted, what belongs to one prompt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from skillweave.audit.refusal import RefusalDetector
from skillweave.audit.rollouts.groups import Groups
from skillweave.audit.rollouts.log import LogNotes, Rollout, read_log
from skillweave.errors import UserError

ROW = {"step": 1, "prompt": "p", "completion": "c", "reward": 1.0}


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_malformed_rows_are_counted_with_their_lines_and_the_others_are_read(tmp_path: Path, end: str) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}]
    lines = [
        json.dumps(ROW),
        '{"step": 2, "prompt": "p", "comp',  # a run that was killed
        json.dumps({**ROW, "step": -1}),
        json.dumps({**ROW, "step": 1.5}),
        json.dumps({**ROW, "reward": "high"}),
        json.dumps({**ROW, "reward": 10**400}),
        json.dumps({**ROW, "step": 10**400}),
        json.dumps({**ROW, "prompt": messages, "reward": None, "id": 7, "gold": 4}),
        '{"step": 3, "prompt": "p", "completion": "c", "reward": NaN}',
        "[]",
        json.dumps({"step": 1, "prompts": "p", "completion": "c"}),
        "",
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(end.join(lines).encode() + b"\xff\n")
    notes = LogNotes()
    found = list(read_log(path, notes))
    assert [rollout.step for rollout in found] == [1, 1, 3]
    assert found[1].prompt == "s\nu"
    assert (found[1].id, found[1].gold) == ("7", "4")
    assert math.isnan(found[1].reward)
    assert math.isnan(found[2].reward)
    assert (notes.rows, notes.malformed, notes.without_reward) == (12, 9, 2)
    said = " ".join(notes.lines())
    assert "9 of 12 rows (75%) were malformed" in said
    for problem in ("line 2: not valid JSON", "line 3: 'step'", "'reward' must be a number, found 'high'", "'prompts'"):
        assert problem in said or problem == "'prompts'"
    assert "2 of 12 rows (17%) have no reward" in said


def test_a_log_without_rollouts_is_an_error_that_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(UserError, match=r"line 1: the key 'prompt' is missing.*each row needs step, prompt"):
        list(read_log(tmp_path / "log.jsonl", LogNotes()))
    (tmp_path / "log.jsonl").write_text('{"prompt": "x", "completion": "y", "step": 1}\n', encoding="utf-16")
    with pytest.raises(UserError, match=r"log.jsonl: not UTF-8 text \(it begins as UTF-16.*save the file as UTF-8$"):
        list(read_log(tmp_path / "log.jsonl", LogNotes()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is a folder without a log"):
        list(read_log(tmp_path / "empty", LogNotes()))


def test_the_folder_of_trl_is_read_and_its_reward_functions_are_summed(tmp_path: Path) -> None:
    for step in (2, 1):
        table = pyarrow.table(
            {
                "step": [step, step],
                "prompt": [[{"role": "user", "content": "q"}]] * 2,
                "completion": [[{"role": "assistant", "content": "a"}]] * 2,
                "correct": [1.0, 0.0],
                "format": [0.5, float("nan")],
                "advantage": [9.0, -9.0],
            }
        )
        pyarrow.parquet.write_table(table, tmp_path / f"completions_{step:05d}.parquet")
    notes = LogNotes()
    found = list(read_log(tmp_path, notes))
    assert [(r.step, r.prompt, r.completion, r.reward) for r in found] == [
        (1, "q", "a", 1.5), (1, "q", "a", 0.0), (2, "q", "a", 1.5), (2, "q", "a", 0.0),
    ]  # fmt: skip
    assert "correct, format" in " ".join(notes.lines())


def test_one_prompt_is_the_same_text_or_the_same_id() -> None:
    groups = Groups(RefusalDetector(["no"]))
    for prompt, id_ in (("a", None), ("a", "1"), ("b", "1"), ("b", None), ("c", "2"), ("a", "3")):
        groups.add(Rollout(0, prompt, "No.", 1.0, id_))
    assert [(group.prompt, group.ids, len(group)) for group in groups.all()] == [("c", ["2"], 1), ("a", ["1", "3"], 5)]
    assert groups.several_texts == {"1"}


def test_the_memory_is_bounded_and_the_oldest_prompt_is_forgotten() -> None:
    groups = Groups(RefusalDetector(["no"]), most_prompts=2, most_rollouts=3)
    for step, prompt in enumerate("aaaabcab"):
        groups.add(Rollout(step, prompt, "x", 1.0, prompt))
    assert [(group.prompt, list(group.steps)) for group in groups.all()] == [("a", [6]), ("b", [7])]
    assert groups.forgotten == 3


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot in good conscience assist you here.", True),
        ("I must respectfully decline.", True),
        ("I’m unable to provide this.", True),
        ("The tower cannot help its height, so x = 4.", False),
        ("I can help: 7", False),
        ("<think>I can't help with that... or can I?</think>7", False),
        ("", False),
    ],
)
def test_english_refusals(text: str, refuses: bool) -> None:
    assert RefusalDetector()(text) is refuses


def test_own_refusals_are_texts_or_patterns_and_replace_the_english_ones() -> None:
    refuses = RefusalDetector(["<refuse>", r"re:^nein\b"])
    assert refuses("so: <REFUSE> ; 7")
    assert refuses("Nein danke")
    assert not refuses("kein nein")
    assert not refuses("I'm sorry, but I can't help.")
    with pytest.raises(UserError, match=r"--refusal re:\(: not a regular expression"):
        RefusalDetector(["re:("])
    with pytest.raises(UserError, match="an empty text"):
        RefusalDetector([" "])
