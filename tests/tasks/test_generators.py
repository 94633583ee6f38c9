"""Built-in and reasoning-gym generators: right answers score 1, wrong ones less, and nothing runs a model's text."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from skillweave.errors import UserError
from skillweave.tasks import load_task
from skillweave.tasks.builtin import BUILTINS

FEW = {"train": 6, "calibration": 3, "test": 6}


def few(source: str, name: str, **more):
    key = "name" if source == "builtin" else "generator"
    return load_task({"source": source, key: name, "splits": FEW, **more})


@pytest.mark.parametrize("name", BUILTINS)
def test_every_builtin_scores_its_own_answer_and_no_other(name: str) -> None:
    task = load_task(f"builtin:{name}")
    assert task.sizes == {"train": 800, "calibration": 64, "test": 200}
    entries = task.split("test")
    for entry in entries:
        assert entry.answer is not None
        assert task.score(entry.answer, entry) == 1.0
        assert task.score("", entry) < 1
        assert task.score(entry.answer + " 987654321", entry) < 1 or name == "json_calls"
        assert len(str(entry.prompt)) < 240
        assert len(entry.answer) < 120
    others = [task.score(str(b.answer), a) for a, b in itertools.pairwise(entries) if a.answer != b.answer]
    assert others
    assert max(others) < 1


@pytest.mark.parametrize("name", BUILTINS)
def test_builtins_are_pure_functions_of_the_seed(name: str) -> None:
    make, settings = BUILTINS[name].make, BUILTINS[name].settings()
    assert make(Random(5), settings) == make(Random(5), settings)
    assert len({make(Random(seed), settings)[0] for seed in range(50)}) > 40
    a, b = few("builtin", name, seed=0), few("builtin", name, seed=1)
    assert not {e.id for e in a.split("test")} & {e.id for e in b.split("test")}


def test_answers_of_builtins_against_slow_references() -> None:
    for entry in few("builtin", "reverse_words").split("train"):
        words = str(entry.prompt).split(": ")[1].split(" ")
        assert entry.answer == " ".join(words[i] for i in range(len(words) - 1, -1, -1))
    for entry in few("builtin", "reverse_words", config={"unit": "letters", "least": 1, "most": 2}).split("train"):
        line = str(entry.prompt).split(": ")[1]
        assert entry.answer == "".join(line[i] for i in range(len(line) - 1, -1, -1))
    for entry in few("builtin", "count_letters").split("train"):
        letter, line = re.findall('"(.*?)"', str(entry.prompt))
        assert entry.answer == str(sum(1 for c in line if c == letter))
    for entry in few("builtin", "sort_numbers").split("train"):
        numbers = [int(n) for n in str(entry.prompt).split(": ")[1].split(", ")]
        wanted = [int(n) for n in str(entry.answer).split(", ")]
        steps = list(itertools.pairwise(wanted))
        ascending = "smallest to largest" in str(entry.prompt)
        assert all(a < b for a, b in steps) if ascending else all(a > b for a, b in steps)
        assert set(numbers) == set(wanted)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    for entry in few("builtin", "caesar", config={"furthest": 25}).split("train"):
        by = int(re.findall(r"by (\d+)", str(entry.prompt))[0])
        line = str(entry.prompt).split(": ")[1]
        table = dict(zip(alphabet, alphabet[by:] + alphabet[:by], strict=True))
        assert entry.answer == "".join(table.get(c, c) for c in line)
    for entry in few("builtin", "micro_reverse", config={"least": 1, "most": 9}).split("train"):
        text = str(entry.prompt).removeprefix("rev: ")
        assert entry.answer == "".join(text[i] for i in range(len(text) - 1, -1, -1))
    for entry in few("builtin", "micro_sort", config={"letters": 3}).split("train"):  # few letters, so some repeat
        text = str(entry.prompt).removeprefix("sort: ")
        assert entry.answer == "".join(letter * text.count(letter) for letter in "abc")
    for entry in few("builtin", "micro_add").split("train"):
        a, b = re.fullmatch(r"add: (\d+)\+(\d+)", str(entry.prompt)).groups()
        total = 0
        for number in (a, b):
            for place, digit in enumerate(reversed(number)):
                total += int(digit) * 10**place
        assert entry.answer == str(total)
    for entry in few("builtin", "micro_shift", config={"furthest": 25}).split("train"):
        by, text = str(entry.prompt).split(": ")
        assert entry.answer == "".join((alphabet * 2)[alphabet.index(letter) + int(by)] for letter in text)
    for entry in few("builtin", "extract_contact").split("train"):
        assert all(part in str(entry.prompt) for part in str(entry.answer).split("; "))


def test_json_calls_name_a_function_of_the_catalogue_and_say_every_value() -> None:
    task = load_task({"source": "builtin", "name": "json_calls", "config": {"describe": True}})
    seen = set()
    for entry in task.split("train"):
        call = json.loads(str(entry.answer))
        seen.add(call["name"])
        signature = re.search(rf"{call['name']}\((.*?)\)", str(entry.prompt))
        assert signature is not None
        assert signature[1].split(", ") == list(call["arguments"])
        request = str(entry.prompt).split("\n")[1]
        if call["name"] not in ("convert_currency", "create_event"):  # those say "euros" and "4 pm" for EUR and 16:00
            assert all(str(value) in request for value in call["arguments"].values())
    assert len(seen) == 8


@pytest.mark.parametrize(("name", "parts"), [("micro_reverse", 1), ("micro_sort", 1), ("micro_add", 2)])
def test_micro_prompts_have_the_length_that_is_set_and_all_lengths_come(name: str, parts: int) -> None:
    make, settings = BUILTINS[name].make, BUILTINS[name].settings(least=1, most=4)
    asked = [make(Random(seed), settings)[0].split(": ")[1].split("+") for seed in range(300)]
    assert {len(sides) for sides in asked} == {parts}
    assert {len(side) for sides in asked for side in sides} == {1, 2, 3, 4}
    if name == "micro_add":  # no leading zeros, and 0 itself may come
        assert {side for sides in asked for side in sides if side.startswith("0")} == {"0"}


def test_builtin_settings_are_checked() -> None:
    with pytest.raises(UserError, match="unknown key 'leest'; did you mean 'least'"):
        few("builtin", "caesar", config={"leest": 2})
    with pytest.raises(UserError, match="greater than most"):
        few("builtin", "caesar", config={"least": 3, "most": 2})


@pytest.mark.parametrize(
    "name", ["letter_counting", "spell_backward", "chain_sum", "gsm_symbolic", "number_sorting", "prime_factorization"]
)
def test_reasoning_gym_scores_its_gold_answers(name: str) -> None:
    task = few("reasoning-gym", name)
    everything = [entry.id for split in FEW for entry in task.split(split)]
    assert len(set(everything)) == sum(FEW.values())
    for entry in task.split("test"):
        assert entry.answer is not None
        assert task.score(f" {entry.answer}\n", entry) == 1.0
        assert task.score("nonsense", entry) == 0.0
    assert few("reasoning-gym", name).split("train") == task.split("train")


def test_reasoning_gym_partial_credit_is_kept_only_where_asked() -> None:
    strict, partial = (few("reasoning-gym", "chain_sum", strict=strict) for strict in (True, False))
    entry = strict.split("test")[0]
    answer = f"The answer is {entry.answer}"
    assert strict.score(answer, entry) == 0.0
    assert 0 < partial.score(answer, entry) < 1


def test_reasoning_gym_instruction_wraps_the_question() -> None:
    plain = few("reasoning-gym", "spell_backward")
    told = few("reasoning-gym", "spell_backward", instruction="{question}\nAnswer with the word only.")
    assert told.split("test")[0].prompt == f"{plain.split('test')[0].prompt}\nAnswer with the word only."
    with pytest.raises(UserError, match=r"must hold \{question\}"):
        few("reasoning-gym", "spell_backward", instruction="Answer.")


def test_reasoning_gym_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'letter_counting'"):
        few("reasoning-gym", "leter_counting")
    with pytest.raises(UserError, match="did you mean 'min_words'"):
        few("reasoning-gym", "letter_counting", config={"min_word": 2})
    with pytest.raises(UserError, match="set it beside"):
        few("reasoning-gym", "letter_counting", config={"seed": 2})
    with pytest.raises(UserError, match="refuses these settings"):
        few("reasoning-gym", "letter_counting", config={"min_words": 9, "max_words": 3})


def test_a_generator_without_gold_answers_only_scores() -> None:
    with pytest.raises(UserError, match="no gold answers, only a verifier"):
        few("reasoning-gym", "propositional_logic")
    task = load_task(
        {
            "source": "reasoning-gym",
            "generator": "propositional_logic",
            "strict": False,
            "splits": {"train": 0, "calibration": 0, "test": 3},
        }
    )
    assert all(0 <= task.score(text, task.split("test")[0]) <= 1 for text in ("A", "", "\x00", "((("))


def test_no_scorer_runs_what_a_model_wrote(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name in ("spiral_matrix", "binary_matrix", "string_insertion", "n_queens", "countdown", "puzzle24"):
        task = few("reasoning-gym", name, strict=False)
        entry = task.split("test")[0]
        assert task.score(str(entry.answer), entry) == 1.0
        for attack in (f"[open({str(mark)!r}, 'w')]", f"[*map(open, [{str(mark)!r}], 'w')]", "9**9**9**9**9", "9* *9"):
            assert task.score(attack, entry) == 0.0
    assert not mark.exists()
    for name in ("simple_integration", "intermediate_integration", "polynomial_multiplication"):
        with pytest.raises(UserError, match="evaluating it as Python"):
            few("reasoning-gym", name)
    fraction = few("reasoning-gym", "coin_flip")
    assert fraction.score("1e999999999", fraction.split("test")[0]) == 0.0


def test_a_hexadecimal_answer_is_no_huge_exponent() -> None:
    task = load_task(
        {
            "source": "reasoning-gym",
            "generator": "base_conversion",
            "config": {"min_value": 10**6, "max_value": 10**9},
            "splits": {"train": 0, "calibration": 0, "test": 100},
        }
    )
    entry = task.split("test")[0]
    for gold in ("fe12345", "1e12345", "e999999", "12e45678"):
        hexadecimal = replace(entry, answer=gold, metadata={**entry.metadata, "answer": gold})
        assert task.score(gold, hexadecimal) == 1.0
        assert task.score(f"<think>7e99999</think>\n{gold}", hexadecimal) == 1.0
        assert task.score("1e99999", hexadecimal) == 0.0
    assert [entry for entry in task.split("test") if task.score(str(entry.answer), entry) != 1.0] == []
