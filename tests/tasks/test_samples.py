"""pass@k against a count of all choices, the majority vote, and few-shot prompts."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import pytest

from skillweave.errors import UserError
from skillweave.tasks import evaluate, interval, load_task
from skillweave.tasks.few_shot import ask_with, draw_examples, with_examples
from skillweave.tasks.samples import pass_at, same_answer, shown_ks, vote
from skillweave.tasks.task import Entry, Task


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_one(n: int) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        chosen = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert pass_at(k, n, right) == pytest.approx(float(Fraction(sum(map(any, chosen)), len(chosen))), abs=1e-15)


def test_pass_at_k_of_many_samples_neither_overflows_nor_rounds_away() -> None:
    assert pass_at(1, 10_000, 3) == pytest.approx(3e-4)
    assert pass_at(5000, 10_000, 1) == pytest.approx(0.5)
    for wrong in ((0, 3, 1), (4, 3, 1), (1, 3, 4), (1, 3, -1)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at(*wrong)


@pytest.mark.parametrize(("n", "ks"), [(2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_which_k_are_shown(n: int, ks: list[int]) -> None:
    assert shown_ks(n) == ks


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ("abb", 1), ("aabb", 0), ("baab", 0), ("cabab", 1), ("a", 0), ([None, "a"], 1), ([None, None], 0),
        ([None, None, "b"], 2), ("AbBa", 0),
    ],
)  # fmt: skip
def test_the_vote(answers: list[str | None], chosen: int) -> None:
    assert vote(answers, lambda one, other: one.lower() == other.lower()) == chosen


def task_of(folder: Path, **settings: object) -> Task:
    answer = settings.pop("answer", "4")
    rows = [{"prompt": f"question {n}", "answer": answer} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {"train": 4, "calibration": 1, "test": 3}
    return load_task({"source": "jsonl", "path": str(folder / "rows.jsonl"), "splits": splits, **settings})


@pytest.mark.parametrize(
    ("verifier", "options", "one", "other", "same"),
    [
        ("exact", {}, "Paris", " paris\n", True),
        ("exact", {}, "Paris", "Paris.", False),
        ("exact", {}, "<think>France</think>Paris", "Paris", True),
        ("numeric", {}, "4", "4.0", True),
        ("numeric", {}, "4", "5", False),
        ("numeric", {"tolerance": 0.5}, "4", "4.3", True),
        ("json", {}, '{"a": 1, "b": 2}', '{"b": 2.0, "a": 1}', True),
        ("json", {}, '{"a": 1}', '{"a": 2}', False),
        ("json", {}, 'I think {"a": [1]} is it', '```json\n{"a": [1.0]}\n```', True),
        ("numeric", {}, "4", "First 2, and 2 more. The sum is 4.", True),
        # These judge by something else than a gold text: two right answers are not one answer.
        ("regex", {"pattern": "\\d"}, "1", "2", False),
    ],
)
def test_two_answers_are_one_as_the_verifier_reads_them(
    tmp_path: Path, verifier: str, options: dict, one: str, other: str, same: bool
) -> None:
    gold = '{"a": 0}' if verifier == "json" else "4"
    asked = same_answer(task_of(tmp_path, verifier=verifier, options=options, answer=gold))
    assert (asked(one, other), asked(other, one)) == (same, same)
    assert asked("no idea", "no idea")


def test_several_samples_a_prompt(tmp_path: Path) -> None:
    task = task_of(tmp_path, verifier="numeric")
    said = [["4", "5", "4.0", None], ["1", "1", "4", "2"], ["4", "4", "4", "4"]]
    asked: list[str] = []

    def answer(prompts: list) -> list[str | None]:
        asked.extend(prompts)
        return [one for each in said for one in each]

    score = evaluate(task, answer, samples=4)
    assert asked == [entry.prompt for entry in task.split("test") for _ in range(4)]
    assert score.sampled == [[1, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 1]]
    assert score.scores == [0.5, 0.25, 1.0]
    assert (score.mean, score.n, score.samples) == (pytest.approx(7 / 12), 3, 4)
    assert score.voted == [0, 0, 0]
    assert score.majority is not None
    assert score.majority.value == pytest.approx(2 / 3)
    assert list(score.pass_at) == [1, 2, 4]
    assert score.pass_at[1].value == pytest.approx(score.mean)
    assert score.pass_at[2].value == pytest.approx((5 / 6 + 1 / 2 + 1) / 3)
    assert score.pass_at[4].value == 1
    assert (score.pass_at[2].low, score.pass_at[2].high) == interval([5 / 6, 1 / 2, 1])
    assert score.figures["pass_at"]["4"]["value"] == 1
    assert "pass_at" not in evaluate(task, lambda prompts: ["4"] * 3).figures


# -- examples before a prompt ------------------------------------------------------------------------------------------


def test_examples_are_drawn_by_seed_from_the_train_split_alone(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    train = {entry.id for entry in task.split("train")}
    drawn = draw_examples(task, 2, seed=0)
    assert len(drawn) == 3
    assert {entry.id for entry in drawn} <= train
    assert draw_examples(task, 2, seed=0) == drawn
    assert any(draw_examples(task, 2, seed=seed) != drawn for seed in range(1, 9))
    asked = ask_with(drawn, 2)(task.split("test")[0])
    assert [message["role"] for message in asked] == ["user", "assistant"] * 2 + ["user"]
    assert [message["content"] for message in asked[1:-1:2]] == ["4", "4"]
    assert asked[-1] == {"role": "user", "content": task.split("test")[0].prompt}


def test_a_prompt_is_never_its_own_example(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    drawn = draw_examples(task, 3, seed=0)
    for entry in task.split("train"):
        asked = ask_with(drawn, 3)(entry)
        assert [message["content"] for message in asked].count(entry.prompt) == 1
        assert len(asked) == 7
    everything = draw_examples(task, 4, seed=0)
    with pytest.raises(UserError, match="without the prompt that is asked only 3"):
        ask_with(everything, 4)(task.split("train")[0])
    assert len(ask_with(everything, 4)(task.split("test")[0])) == 9


def test_too_few_examples_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of the 4 train examples of task 'rows' 4 have an answer"):
        draw_examples(task_of(tmp_path), 5, seed=0)
    unsolved = Task("t", {"train": [Entry("a", "x", None)], "test": [Entry("b", "y", None)]}, lambda *_: 0.0, None)
    with pytest.raises(UserError, match="of the 1 train examples of task 't' 0 have an answer"):
        draw_examples(unsolved, 1, seed=0)


def test_system_messages_and_tools_of_the_prompt_stay() -> None:
    system, asked = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}
    example = Entry("e", [{"role": "system", "content": "Be long."}, {"role": "user", "content": "1?"}], "1")
    shown = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]
    assert with_examples([system, asked], [example]) == [system, *shown, asked]
