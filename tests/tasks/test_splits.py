"""Files and generators as tasks: forms, errors, and splits that never share a prompt."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from skillweave.config import Config, read_config
from skillweave.errors import UserError
from skillweave.tasks import Task, TaskSpec, load, load_task
from skillweave.tasks.task import SPLITS, near_id, prompt_id

SMALL = {"test": 5, "calibration": 3}


def write(path: Path, rows: list) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def rows(start: int, stop: int) -> list[dict]:
    return [{"prompt": f"question {n}", "answer": str(n)} for n in range(start, stop)]


def jsonl(path: Path, **more) -> Task:
    return load_task({"source": "jsonl", "path": str(path), "splits": SMALL, **more})


def ids(task: Task) -> dict[str, list[str]]:
    return {name: [entry.id for entry in task.split(name)] for name in SPLITS}


def assert_disjoint(task: Task) -> None:
    everything = [id_ for split in ids(task).values() for id_ in split]
    assert len(everything) == len(set(everything)) == sum(task.sizes.values())
    prompts = [{entry.prompt_id for entry in task.split(name)} for name in SPLITS]
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_a_file_is_cut_alike_in_any_order_and_no_prompt_stands_twice(tmp_path: Path) -> None:
    data = rows(0, 40)
    first = jsonl(write(tmp_path / "a.jsonl", data))
    random.Random(1).shuffle(data)
    second = jsonl(write(tmp_path / "b.jsonl", data))
    assert ids(first) == ids(second)
    assert first.sizes == {"train": 32, "calibration": 3, "test": 5}
    assert_disjoint(first)
    assert first.score("7", next(e for e in first.split("train") if e.answer == "7")) == 1.0
    assert first.name == "a"


def test_only_rows_that_are_the_same_in_all_are_dropped_and_it_is_said(tmp_path: Path, capsys) -> None:
    noted = [{**row, "source": "elsewhere"} for row in rows(0, 10)]  # what is neither learnt nor judged by
    others = [{"prompt": "question 3", "answer": "three"}, {"prompt": "Question 3", "answer": "3"}]
    task = jsonl(write(tmp_path / "told.jsonl", rows(0, 40) + noted + others))
    assert (task.rows, task.duplicates, sum(task.sizes.values())) == (52, 10, 42)
    assert_disjoint(task)
    said = " ".join(capsys.readouterr().err.split())
    assert "task told: 10 of 52 rows (19%) are exact repeats and were dropped" in said
    assert "task told: 1 rows give another answer to a prompt that stands before" in said
    jsonl(tmp_path / "told.jsonl")
    assert not capsys.readouterr().err  # said once in a process


def test_a_prompt_with_several_answers_is_asked_once_learnt_from_all_and_any_is_right(tmp_path: Path) -> None:
    colours = [{"prompt": "Name a colour.", "answer": colour} for colour in ("red", "blue", "green")]
    for seed in range(5):  # in any order the same
        data = rows(0, 8) + colours
        random.Random(seed).shuffle(data)
        task = jsonl(write(tmp_path / "a.jsonl", data), splits={"test": 9, "calibration": 0, "train": 0})
        assert task.sizes["test"] == 11
        assert len(task.distinct("test")) == 9
        asked = [entry for entry in task.split("test") if entry.prompt == "Name a colour."]
        assert {entry.answer for entry in asked} == {"red", "blue", "green"}
        assert [entry.id for entry in task.split("test")] == [
            entry.id
            for entry in jsonl(
                write(tmp_path / "b.jsonl", sorted(data, key=str)), splits={"test": 9, "calibration": 0, "train": 0}
            ).split("test")
        ]
        for entry in asked:
            assert [task.score(colour, entry) for colour in ("red", "blue", "green", "mud")] == [1, 1, 1, 0]
    part = jsonl(tmp_path / "a.jsonl", splits={"test": 4, "calibration": 3})
    assert_disjoint(part)
    homes = [name for name in SPLITS for entry in part.split(name) if entry.prompt == "Name a colour."]
    assert len(homes) == 3
    assert len(set(homes)) == 1


def test_a_fixed_train_size_and_one_that_is_too_great(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(0, 20))
    assert jsonl(path, splits={**SMALL, "train": 7}).sizes["train"] == 7
    assert jsonl(path, splits={**SMALL, "train": 12}).sizes["train"] == 12
    with pytest.raises(UserError, match=r"20 distinct prompts.*5 test \+ 3 calibration \+ 13 train"):
        jsonl(path, splits={**SMALL, "train": 13})
    with pytest.raises(UserError, match="20 distinct prompts"):
        load_task(str(path))  # the default sizes need more


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
            [{"role": "user", "content": "hi"}],
            "ho",
        ),
        ({"prompt": "hi", "completion": "ho"}, "hi", "ho"),
        (
            {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]},
            [{"role": "user", "content": "hi"}],
            "ho",
        ),
        ({"prompt": "hi", "answer": "ho"}, "hi", "ho"),
        ({"question": "hi", "answer": "ho"}, "hi", "ho"),
        ({"question": "hi", "prompt": None, "completion": "ho"}, "hi", "ho"),
    ],
)
def test_forms(tmp_path: Path, row: dict, prompt, answer: str) -> None:
    path = write(tmp_path / "a.jsonl", [{**row, "level": 3}])
    task = jsonl(path, splits={"test": 1, "calibration": 0, "train": 0})
    (entry,) = task.split("test")
    assert (entry.prompt, entry.answer) == (prompt, answer)
    assert entry.metadata["level"] == 3
    assert task.score("ho", entry) == 1.0
    assert task.score("hu", entry) == 0.0


def test_a_text_and_the_same_text_as_a_message_are_one_prompt() -> None:
    same = [{"role": "user", "content": "hello you"}]
    assert prompt_id("hello you") == prompt_id(same) == prompt_id({"messages": same, "tools": []})
    assert prompt_id("caf\u00e9") == prompt_id("cafe\u0301")
    others = ["Hello you", "hello  you", "hello you\n", [{"role": "system", "content": "hello you"}]]
    others.append({"messages": same, "tools": [{"type": "function", "function": {"name": "f"}}]})
    assert len({prompt_id(prompt) for prompt in ["hello you", *others]}) == 6
    assert len({near_id(prompt) for prompt in ["hello you", *others[:3]]}) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{broken", r"line 3: not valid JSON"),
        (
            "[1]",
            r"line 3: expected an object with keys, found list \[1\]; a file that is one list of rows is named \.json",
        ),
        ("1", r"line 3: expected an object with keys.*found 1"),
        ({"text": "x"}, r"line 3: found 'text'; a row needs 'messages' or 'prompt'"),
        ({}, r"line 3: found no keys"),
        ({"prompt": "x"}, r"line 3: has a 'prompt' but neither"),
        ({"prompt": "x", "answer": ""}, r"line 3: the answer must be a text"),
        ({"prompt": "x", "answer": {}}, r"line 3: the answer must be a text"),
        ({"prompt": "  ", "answer": "4"}, r"line 3: the prompt is empty"),
        ({"prompt": "x", "completion": "4"}, r"line 3: has the form prompt/completion, .*line 1 has prompt/answer"),
        ({"prompt": "x", "completion": "4", "answer": "4"}, r"line 3: has both 'completion' and 'answer'"),
        ({"messages": [], "prompt": "x"}, r"line 3: has both 'messages' and 'prompt'"),
        ({"prompt": [{"role": "system", "content": "x"}], "answer": "4"}, r"line 3: there is no message.*'user'"),
        ({"prompt": [{"role": "user"}], "answer": "4"}, r"line 3: prompt, message 1 must have"),
        ({"prompt": [], "answer": "4"}, r"line 3: 'prompt' must be a text or a list of messages"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, bad, message: str) -> None:
    path = write(tmp_path / "data.jsonl", [*rows(0, 1), "", bad])  # line 2 is blank
    with pytest.raises(UserError, match=message) as error:
        jsonl(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": "x"}], "last message must be the assistant's"),
        ([{"role": "assistant", "content": "x"}], "no message with the role 'user'"),
        (
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": "b"},
            ],
            "prompt ends with the assistant",
        ),
        ("x", "'messages' is a text that holds no JSON"),
        ({}, "must be a list of messages"),
    ],
)
def test_bad_messages_are_named(tmp_path: Path, messages, message: str) -> None:
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        jsonl(write(tmp_path / "data.jsonl", [{"messages": messages}]))


def test_gold_that_the_verifier_cannot_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [*rows(0, 3), {"prompt": "x", "answer": "many"}])
    with pytest.raises(UserError, match=r"line 4: verifier 'numeric' found no number"):
        jsonl(path, verifier="numeric")


def test_code_rows_need_no_answer_but_training_on_them_does(tmp_path: Path) -> None:
    data = [{"prompt": f"add {n}", "cases": [{"call": "f(1)", "value": 1 + n}]} for n in range(12)]
    task = jsonl(write(tmp_path / "data.jsonl", data), verifier="code")
    entry = task.split("test")[0]
    n = str(entry.prompt).split()[1]
    assert task.score(f"def f(x):\n    return x + {n}", entry) == 1.0
    with pytest.raises(UserError, match="4 train examples have no gold answer"):
        task.pairs("train")


ADDING = {"cases": [{"call": "f(1)", "value": 2}], "answer": "def f(x):\n    return x + 1"}
YIELDING = {**ADDING, "answer": "def g(x):\n    yield x + 1\ndef f(x):\n    return next(g(x))"}


def test_a_row_whose_own_program_fails_its_cases_is_named(tmp_path: Path) -> None:
    data = [{"prompt": f"add {n}", **ADDING} for n in range(12)]
    jsonl(write(tmp_path / "data.jsonl", data), verifier="code")
    data[3]["answer"] = "def f(x):\n    return x"
    with pytest.raises(UserError, match=r"data.jsonl, line 4: .* case 1: f\(1\) gives 1, not 2"):
        jsonl(write(tmp_path / "data.jsonl", data), verifier="code")


def test_what_the_interpreter_lacks_is_told_when_the_task_is_read(tmp_path: Path) -> None:
    data = [{"prompt": f"add {n}", **YIELDING} for n in range(12)]
    with pytest.raises(UserError, match=r"line 1: .* yield .*runner: process"):
        jsonl(write(tmp_path / "data.jsonl", data), verifier="code")


def test_of_many_rows_a_sample_is_run_and_a_note_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(load, "_PROGRAMS", 5)
    data = [{"prompt": f"add {n}", **ADDING} for n in range(12)]
    jsonl(write(tmp_path / "data.jsonl", data), verifier="code")
    assert "4 of 12 answers were run" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(UserError, match="is empty"):
        jsonl(tmp_path / "data.jsonl")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_task(str(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_task(tmp_path / "latin.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        load_task(tmp_path / "folder.jsonl")


def three_files(tmp_path: Path, train: list, test: list, calibration: list | None = None) -> dict:
    paths = {"train": str(write(tmp_path / "train.jsonl", train)), "test": str(write(tmp_path / "test.jsonl", test))}
    if calibration is not None:
        paths["calibration"] = str(write(tmp_path / "calibration.jsonl", calibration))
    return {"source": "jsonl", "paths": paths}


def test_one_file_a_split(tmp_path: Path) -> None:
    task = load_task(three_files(tmp_path, rows(0, 10), rows(10, 14), rows(14, 16)))
    assert task.sizes == {"train": 10, "calibration": 2, "test": 4}
    assert [entry.answer for entry in task.split("test")] == ["10", "11", "12", "13"]
    assert_disjoint(task)


def test_calibration_comes_out_of_train_where_it_has_no_file(tmp_path: Path) -> None:
    task = load_task({**three_files(tmp_path, rows(0, 10), rows(10, 14)), "splits": {"calibration": 3}})
    assert task.sizes == {"train": 7, "calibration": 3, "test": 4}
    assert_disjoint(task)


def test_files_that_share_a_prompt_are_refused(tmp_path: Path) -> None:
    spec = three_files(tmp_path, rows(0, 10), [*rows(20, 22), {"prompt": "question 4", "answer": "4"}], rows(30, 32))
    with pytest.raises(UserError, match=r"1 of the test prompts stand in train too.*train.jsonl, line 5 and .*line 3"):
        load_task(spec)


def test_near_copies_in_two_files_are_warned_of(tmp_path: Path, capsys) -> None:
    near = [{"prompt": f"Question  {n}", "answer": str(n)} for n in range(3)]
    load_task(three_files(tmp_path, rows(0, 10), [*rows(20, 22), *near], rows(30, 32)))
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 3 of the test prompts stand in train too but for case or white space" in said
    assert f"{tmp_path / 'test.jsonl'}, line 3" in said


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    spec = three_files(tmp_path, rows(0, 10), rows(10, 14))
    with pytest.raises(UserError, match=r"remove splits\.test"):
        load_task({**spec, "splits": {"test": 3}})
    with pytest.raises(UserError, match="either 'path'"):
        load_task({"source": "jsonl"})
    with pytest.raises(UserError, match="unknown key 'pth'; did you mean 'path"):
        load_task({"source": "jsonl", "pth": "x"})
    with pytest.raises(UserError, match="source"):
        load_task({"source": "json", "path": "x"})
    with pytest.raises(UserError, match="names no task"):
        load_task("data.xlsx")


def test_growth_of_train_moves_no_test_and_no_calibration_entry() -> None:
    def sized(train: int) -> dict[str, list[str]]:
        splits = {"train": train, "calibration": 8, "test": 20}
        return ids(load_task({"source": "builtin", "name": "sort_numbers", "splits": splits}))

    small, great = sized(10), sized(300)
    assert small["test"] == great["test"]
    assert small["calibration"] == great["calibration"]
    assert small["train"] == great["train"][:10]


def test_a_generator_with_too_few_prompts_says_how_many() -> None:
    config = {"least": 2, "most": 2, "greatest": 10, "order": "ascending"}
    with pytest.raises(UserError, match=r"gave only 110 distinct prompts"):  # 11 * 10 ordered pairs
        load_task({"source": "builtin", "name": "sort_numbers", "config": config})
    splits = {"train": 80, "calibration": 10, "test": 20}
    task = load_task({"source": "builtin", "name": "sort_numbers", "config": config, "splits": splits})
    assert_disjoint(task)
    assert task.duplicates > 0


def test_an_empty_or_unknown_split_is_named() -> None:
    task = load_task({"source": "builtin", "name": "caesar", "splits": {"train": 3, "calibration": 0, "test": 2}})
    with pytest.raises(UserError, match="no calibration examples"):
        task.split("calibration")
    with pytest.raises(UserError, match="did you mean 'test'"):
        task.split("tests")
    with pytest.raises(UserError, match="is empty"):
        load_task({"source": "builtin", "name": "caesar", "splits": {"train": 0, "calibration": 0, "test": 0}})


def test_yaml_and_short_forms(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("source: builtin\nname: caesar\nsplits:\n  train: 4\n  calibration: 1\n  test: 2\n")
    assert load_task(file).sizes == {"train": 4, "calibration": 1, "test": 2}
    file.write_text("source: builtin\nname: caesar\nsplits:\n  trains: 4\n")
    with pytest.raises(UserError, match=r"task.yaml, line 4: unknown key 'splits.trains'; did you mean 'train'"):
        load_task(str(file))

    class Holder(Config):
        task: TaskSpec

    held = read_config(Holder, {"task": "builtin:caesar"}).task
    assert load_task(held).split("test") == load_task("builtin:caesar").split("test")
    assert read_config(Holder, {"task": {"source": "jsonl", "path": "x.jsonl"}}).task.source == "jsonl"
    with pytest.raises(UserError, match="did you mean 'caesar'"):
        load_task("builtin:cesar")


def test_a_dataset_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(rows(0, 20))
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "several"))
    one = load_task({"source": "dataset", "path": str(tmp_path / "one"), "splits": SMALL})
    several = load_task({"source": "dataset", "path": str(tmp_path / "several"), "splits": SMALL})
    assert ids(one) == ids(several)
    assert_disjoint(one)
    with pytest.raises(UserError, match="did you mean 'train'"):
        load_task({"source": "dataset", "path": str(tmp_path / "several"), "split": "trian"})
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no dataset folder"):
        load_task(f"dataset:{tmp_path / 'none'}")
    bad = datasets.Dataset.from_list([{"ask": "x"}])
    bad.save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(UserError, match="bad, row 1: found 'ask'"):
        load_task(f"dataset:{tmp_path / 'bad'}")


def test_verifiers_of_a_task_are_named_mixed_and_given_their_options(tmp_path: Path) -> None:
    data = [{"prompt": f"p{n}", "answer": f"{n}"} for n in range(12)]
    path = write(tmp_path / "data.jsonl", data)
    (tmp_path / "checks.py").write_text("def half(text, gold, options):\n    return 0.5 if text == gold else 0\n")
    own = f"{tmp_path}/checks.py:half"
    parts = [{"verifier": own}, {"verifier": "numeric", "options": {"answer_at": "boxed"}}]
    for more, expected in (
        ({"verifier": own}, 0.5),
        ({"verifier": "mix", "options": {"parts": parts}}, 0.25),
        ({"verifier": "numeric", "thoughts": "keep"}, 1.0),
    ):
        task = jsonl(path, **more)
        entry = task.split("train")[0]
        assert task.score(str(entry.answer), entry) == expected
    with pytest.raises(UserError, match="did you mean 'numeric'"):
        jsonl(path, verifier="numerik")
    with pytest.raises(UserError, match=r"line 1: verifier 'json' needs"):
        jsonl(write(tmp_path / "bad.jsonl", [{"prompt": "p", "answer": "{'a': 1}"}]), verifier="json")
    kept, stripped = (jsonl(path, verifier="exact", thoughts=thoughts) for thoughts in ("keep", "strip"))
    entry = kept.split("train")[0]
    assert [task.score(f"<think>x</think>{entry.answer}", entry) for task in (kept, stripped)] == [0.0, 1.0]
