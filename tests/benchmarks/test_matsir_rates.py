"""The rates of a model's roles, with scripted models whose rates are known."""

from itertools import combinations

import pytest
from benchmarks.matsir.micro_rates import measure, pass_at, propose_prompt, tried

from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.induction import InductionConfig
from skillweave.reason.induction.draw import evaluation
from skillweave.reason.induction.families import ProgramPart
from skillweave.reason.induction.rows import criticise_prompt, refine_prompt
from skillweave.reason.induction.write import Problems

PROBLEMS = Problems(InductionConfig(rows=1, tasks=3, practice=0)).test
PROMPTS = PromptSet.named("induction")


def test_the_chance_that_one_of_k_solves_is_that_over_all_choices():
    solved = [True, False, False, True, False]
    for k in range(1, 6):
        chosen = list(combinations(solved, k))
        assert pass_at(k, 2, 5) == pytest.approx(sum(any(some) for some in chosen) / len(chosen))


def wrong_of(problem):
    """A failing program: the first neighbour that fails."""
    return next(
        other
        for other in problem.family.neighbours(problem.program)
        if not all(evaluation(problem, other).solved)
        and all(map(problem.family.fits, evaluation(problem, other).outcomes))
    )


def test_rates_of_a_model_that_proposes_half_right_and_repairs_only_with_the_right_note():
    answers = {}
    for problem in PROBLEMS:
        right, wrong = problem.family.source(problem.program), wrong_of(problem)
        answers[propose_prompt(PROMPTS, problem)] = [right, problem.family.source(wrong)]
        answers[criticise_prompt(problem, PROMPTS, wrong)] = ["nothing"]
        note = problem.family.fault(wrong, problem.program)
        answers[refine_prompt(problem, PROMPTS, wrong, note)] = [right]
        for other in ("", "nothing"):
            answers[refine_prompt(problem, PROMPTS, wrong, other)] = ["no program", "def f(x):\n    return x"]

    def ask(prompts, samples, seed):
        return [[answers[prompt][at % len(answers[prompt])] for at in range(samples)] for prompt in prompts]

    found = measure(ask, PROBLEMS, samples=4)
    assert (found["problems"], found["failing"], found["readable"]) == (6, 6, 1)
    assert found["pass@1"] == found["fresh"] == 0.5
    assert found["pass@4"] == 1
    assert found["critic"] == 0
    assert [found[f"fixed, {note}"] for note in ("no note", "critic's note", "right note")] == [0, 0, 1]
    assert [found[f"improved, {note}"] for note in ("no note", "critic's note", "right note")] == [0, 0, 1]


def test_a_text_of_another_form_solves_nothing():
    assert tried(PROBLEMS[0], "import os").coherent == 0
    assert tried(PROBLEMS[0], PROBLEMS[0].family.source((ProgramPart("sort"),))).program == (ProgramPart("sort"),)
