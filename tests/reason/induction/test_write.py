"""The folder of generated problems: no overlap by behaviour, right rows, determinism, refusals."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from tests.reason.induction.test_families import in_cpython

from skillweave.errors import UserError
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.read_answer import read_note, read_output, read_program, read_rule
from skillweave.reason.induction import write
from skillweave.reason.induction.config import InductionConfig, InductionFamily
from skillweave.reason.induction.draw import determined, draw_failing, draw_problem, evaluation
from skillweave.reason.induction.families import FAMILIES, ProgramPart
from skillweave.reason.induction.rows import KINDS
from skillweave.reason.induction.write import Problems, write_induction
from skillweave.reason.problem import IOPair
from skillweave.tasks import load_task

SMALL = InductionConfig(rows=300, tasks=12, practice=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("induction") / "data"
    write_induction(folder, SMALL)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_row_has_the_behaviour_of_a_test_or_practice_problem():
    problems = Problems(SMALL)
    test, practice = ({one.behaviour for one in part} for part in (problems.test, problems.practice))
    assert (len(test), len(practice)) == (24, 16)
    assert not test & practice
    trained = [problem for _, problem in problems.rows()]
    for problem in trained:
        assert problem.family.behaviour(problem.program) not in test | practice
    assert sum(reasons["held out"] for reasons in problems.refused.values()) > 0


def test_rows_are_what_the_agents_read_and_programs_reproduce_their_pairs(folder):
    rows = lines(folder / "rows.jsonl")
    assert {row["kind"] for row in rows} == set(KINDS)
    for row in rows:
        answer, prompt = row["answer"], row["prompt"].splitlines()
        if row["kind"] in ("program", "refine", "code"):
            assert read_program(answer).program == answer
        if row["kind"] in ("program", "refine"):
            for line in prompt[: next(at for at, line in enumerate(prompt) if " -> " not in line)]:
                left, right = line.split(" -> ")
                lists = row["family"] == "lists"
                given = json.loads(left) if lists else left
                wanted = json.loads(right) if lists else right.strip("'")
                assert in_cpython(answer, given) == wanted
        elif row["kind"] == "criticise":
            assert read_note(answer, 1).text == answer
        elif row["kind"] == "answer":
            assert str(read_output(answer, texts=row["family"] == "commands")) == answer
        elif row["kind"] == "rule":
            assert read_rule(answer) == answer


def test_a_failing_program_in_a_row_fails_as_the_row_says(folder):
    for row in lines(folder / "rows.jsonl"):
        if row["kind"] in ("refine", "criticise"):
            before, after = row["prompt"].split("Wrong:\n")
            wrong = after[: after.index("\n", after.index("return"))]
            gave = [line.split(" gave ") for line in after.splitlines() if " gave " in line]
            assert 1 <= len(gave) <= 3
            for left, right in gave:
                value = json.loads(left) if row["family"] == "lists" else left
                assert str(in_cpython(wrong, value)) == right.strip("'")
                assert f"{left} -> {right}" not in before.splitlines()


def test_problems_have_the_public_layout_and_longer_test_inputs(folder):
    problems = lines(folder / "problems.jsonl")
    assert Counter(problem["family"] for problem in problems) == {"lists": 12, "commands": 12}
    assert len({problem["name"] for problem in problems}) == 24
    for problem in problems:
        assert list(problem) == ["name", "family", "train", "test"]
        if problem["family"] == "commands":
            longest = max(len(pair["input"].split()) for pair in problem["train"])
            assert all(len(pair["input"].split()) > longest for pair in problem["test"])
            known = {word for pair in problem["train"] for word in pair["input"].split()}
            assert all(set(pair["input"].split()) <= known for pair in problem["test"])


def test_equal_settings_write_equal_bytes_and_other_seeds_others(folder, tmp_path):
    write_induction(tmp_path / "again", SMALL)
    other = write_induction(tmp_path / "other", SMALL.model_copy(update={"seed": 1}))
    facts = json.loads((folder / "induction.json").read_text())
    for name in ("rows.jsonl", "problems.jsonl", "practice.jsonl", "induction.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert other["digest"] != facts["digest"]
    assert facts["counts"] == {"rows.jsonl": 300, "problems.jsonl": 24, "practice.jsonl": 16}


def test_the_rows_are_a_task(folder):
    task = load_task({"source": "file", "path": str(folder / "rows.jsonl"), "splits": {"calibration": 8, "test": 8}})
    assert len(task.pairs("train")) == 300 - 16 - task.duplicates


def test_a_failing_write_leaves_nothing_and_an_existing_folder_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="exists already"):
        write_induction(folder, SMALL)
    monkeypatch.setattr(write, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_induction(tmp_path / "broken", SMALL)
    assert not (tmp_path / "broken").exists()


def test_another_process_cannot_take_the_folder_while_problems_are_drawn(tmp_path, monkeypatch):
    tried, few = [], InductionConfig(rows=20, tasks=2, practice=0)

    def from_another_thread(settings):
        with ThreadPoolExecutor(1) as threads:
            for write_there in (lambda: write_induction(tmp_path / "new", few), prompts):
                with pytest.raises(UserError, match="new is being written by another thread"):
                    threads.submit(write_there).result()
                tried.append(write_there)
        return drawn(settings)

    def prompts() -> None:
        PromptSet.named("induction").write(tmp_path / "new")

    drawn = write.Problems
    monkeypatch.setattr(write, "Problems", from_another_thread)
    write_induction(tmp_path / "new", few)
    assert len(tried) == 2
    assert os.listdir(tmp_path) == ["new"]


def test_too_many_problems_for_the_family_are_refused():
    one = {"lists": InductionFamily(train=(1, 1), test=(1, 1), pairs=(5, 5))}
    with pytest.raises(UserError, match="ask for fewer test and practice problems"):
        Problems(InductionConfig(rows=1, tasks=60, practice=0, families=one))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": {"list": {"train": (1, 2), "test": (1, 2), "pairs": (5, 6)}}}, "did you mean 'lists'"),
        ({"families": {"lists": {"train": (3, 2), "test": (1, 2), "pairs": (5, 6)}}}, "the smaller one first"),
        ({"kinds": {"program": 0}}, "must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InductionConfig(**settings)


def test_training_pairs_determine_the_test_pairs():
    family = FAMILIES["commands"]
    program = (
        ProgramPart("write", "RED", "dax"),
        ProgramPart("write", "BLUE", "fep"),
        ProgramPart("last_to_front", None, "lug"),
    )

    def pairs(*texts):
        return tuple(IOPair(text, family.run(program, text)) for text in texts)

    test = pairs("dax fep fep lug fep")
    assert determined(family, program, pairs("dax fep lug", "fep dax", "dax fep fep lug"), test)
    assert not determined(family, program, pairs("dax fep lug", "fep dax"), test)  # lug may be out[::-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_failing_program_fails_on_a_training_pair(name):
    random = Random(5)
    for mistakes in (1, 2, 3):
        problem = draw_problem(FAMILIES[name], random, (2, 3) if name == "lists" else (4, 5), (6, 6))
        wrong = draw_failing(problem, random, mistakes)
        assert wrong is not None
        assert not all(evaluation(problem, wrong).solved)
        assert all(evaluation(problem, problem.program).solved)
