"""Direct answers: the model reads the examples and writes the test output itself, without a program."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from skillweave.config import Config
from skillweave.reason.agents.team import AgentTeam
from skillweave.reason.budget import BudgetSpent, Meter
from skillweave.reason.problem import Missing, Value
from skillweave.tasks.verifiers.code_result import same_result


class DirectConfig(Config):
    """Direct answers: one for each test input (IO), or several and a majority vote (self-consistency)."""

    samples: int | None = Field(
        default=1, ge=1, description="answers for each test input; none: as many as the budget allows"
    )


@dataclass(frozen=True)
class DirectAnswers:
    """The answers to all test inputs after so many calls."""

    predictions: tuple[Value | Missing, ...]
    calls: int
    tokens: int


async def answer_directly(
    team: AgentTeam, meter: Meter, inputs: Sequence[Value], settings: DirectConfig
) -> list[DirectAnswers]:
    """Answer all inputs round by round, and return the vote after each round; the last one counts.

    A round that the budget cuts short votes with the answers that it has. Without any call there is one entry, in which
    all answers are missing.
    """
    votes: list[list[Value | Missing]] = [[] for _ in inputs]
    course = []
    number = 0
    while (settings.samples is None or number < settings.samples) and meter.room:
        keys = [f"answer/{number}/{place}" for place in range(len(inputs))]
        answers = await asyncio.gather(
            *(team.answer(key, value) for key, value in zip(keys, inputs, strict=True)), return_exceptions=True
        )
        for own, answer in zip(votes, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, BudgetSpent):
                raise answer
            if not isinstance(answer, BaseException):
                own.append(answer)
        course.append(DirectAnswers(tuple(majority(own) for own in votes), meter.calls, meter.tokens))
        number += 1
    return course or [DirectAnswers(tuple(majority([]) for _ in inputs), meter.calls, meter.tokens)]


def majority(answers: Sequence[Value | Missing]) -> Value | Missing:
    """The most frequent value; the first of equally frequent ones. Missing answers count only if all are missing."""
    groups: list[list[Value]] = []
    for answer in answers:
        if isinstance(answer, Missing):
            continue
        group = next((group for group in groups if same_result(group[0], answer)), None)
        if group is None:
            groups.append([answer])
        else:
            group.append(answer)
    if groups:
        return max(groups, key=len)[0]  # max() keeps the first
    return next(iter(answers), Missing("the budget was spent before an answer"))
