"""Training rows: what each agent is asked about a problem, and the right answer.

The prompts are rendered from the templates that the agents use, so the model learns exactly what it will be asked.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Literal, get_args

from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.prompt_values import bare_text, failure_texts, literal_text, pair_texts
from skillweave.reason.induction.draw import DrawnProblem, draw_failing, evaluation
from skillweave.reason.induction.families import Program
from skillweave.reason.problem import ExamplePairs

RowKind = Literal["program", "refine", "criticise", "answer", "rule", "code"]
KINDS: tuple[RowKind, ...] = get_args(RowKind)

_NOTES = 1 / 3
"""Share of the rows of kind `refine` with the critic's note."""
_FAILED = 1 / 4
"""Share of the rows of kind `refine` with earlier refinements that failed."""
_MISTAKES = (1, 1, 1, 2, 2, 3)
"""How many mistakes a failing program has; each is as likely."""


def row(kind: RowKind, problem: DrawnProblem, prompts: PromptSet, random: Random) -> dict[str, Any] | None:
    """A row with ``prompt`` and ``answer``, and with ``kind`` and ``family``; None if no failing program was found."""
    made = _MAKERS[kind](problem, prompts, random)
    return None if made is None else {"prompt": made[0], "answer": made[1], "kind": kind, "family": problem.family.name}


def refine_prompt(
    problem: DrawnProblem, prompts: PromptSet, wrong: Program, note: str = "", failed: tuple[Program, ...] = ()
) -> str:
    """The refiner's prompt for a failing program of the family."""
    return prompts.render(
        "refine_program",
        **_failing(problem, wrong),
        note=note,
        failed=[problem.family.source(program) for program in failed],
    )


def criticise_prompt(problem: DrawnProblem, prompts: PromptSet, wrong: Program) -> str:
    """The critic's prompt for a failing program of the family."""
    return prompts.render("criticise", **_failing(problem, wrong))


def _failing(problem: DrawnProblem, wrong: Program) -> dict[str, Any]:
    """The variables about a failing program. The induction prompts show no rule beside a program."""
    return {
        "pairs": pair_texts(problem.examples),
        "rule": "",
        "program": problem.family.source(wrong),
        "failures": failure_texts(problem.examples, evaluation(problem, wrong)),
    }


def _program(problem: DrawnProblem, prompts: PromptSet, random: Random) -> tuple[str, str]:
    prompt = prompts.render("propose_program", pairs=pair_texts(problem.examples), avoid=[])
    return prompt, problem.family.source(problem.program)


def _refine(problem: DrawnProblem, prompts: PromptSet, random: Random) -> tuple[str, str] | None:
    wrong = draw_failing(problem, random, random.choice(_MISTAKES))
    if wrong is None:
        return None
    note = problem.family.fault(wrong, problem.program) if random.random() < _NOTES else ""
    failed: list[Program] = []
    if random.random() < _FAILED:
        for _ in range(random.choice((1, 2))):
            other = draw_failing(problem, random, random.choice(_MISTAKES))
            if other is not None and other != wrong and other not in failed:
                failed.append(other)
    return refine_prompt(problem, prompts, wrong, note, tuple(failed)), problem.family.source(problem.program)


def _criticise(problem: DrawnProblem, prompts: PromptSet, random: Random) -> tuple[str, str] | None:
    wrong = draw_failing(problem, random, random.choice(_MISTAKES))
    if wrong is None:
        return None
    return criticise_prompt(problem, prompts, wrong), problem.family.fault(wrong, problem.program)


def _answer(problem: DrawnProblem, prompts: PromptSet, random: Random) -> tuple[str, str] | None:
    """The prompt that asks for the output of the last training pair, and that output; None if it is an empty text."""
    *shown, asked = problem.train
    if asked.output == "":
        return None
    pairs = pair_texts(ExamplePairs("", tuple(shown), problem.family.name))
    prompt = prompts.render("answer", pairs=pairs, input=literal_text(asked.input))
    return prompt, bare_text(literal_text(asked.output))


def _rule(problem: DrawnProblem, prompts: PromptSet, random: Random) -> tuple[str, str]:
    prompt = prompts.render("propose_rule", pairs=pair_texts(problem.examples), avoid=[])
    return prompt, problem.family.rule(problem.program)


def _code(problem: DrawnProblem, prompts: PromptSet, random: Random) -> tuple[str, str]:
    rule = problem.family.rule(problem.program)
    return prompts.render("code", pairs=pair_texts(problem.examples), rule=rule), problem.family.source(problem.program)


_MAKERS: dict[RowKind, Callable[[DrawnProblem, PromptSet, Random], tuple[str, str] | None]] = {
    "program": _program,
    "refine": _refine,
    "criticise": _criticise,
    "answer": _answer,
    "rule": _rule,
    "code": _code,
}
