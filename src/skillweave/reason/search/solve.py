"""One problem from its examples to its grade: search, open the test inputs, predict, grade, record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from skillweave.config import Config
from skillweave.progress import say_once
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.team import AgentSettings, AgentTeam, Role
from skillweave.reason.budget import Budget, Meter
from skillweave.reason.lab import Lab
from skillweave.reason.models.model import Model, ModelUnreachable
from skillweave.reason.problem import Missing, Problem, Value
from skillweave.reason.search.direct import DirectConfig, answer_directly, majority
from skillweave.reason.search.frame import SearchFrame, Watcher
from skillweave.reason.search.methods import SearchMethod
from skillweave.reason.search.record import shown, traced_node, traced_pairs
from skillweave.reason.solution import Solution
from skillweave.reason.trace import SearchTrace, TracedCheckpoint, TracedTest
from skillweave.terminal import one_line


@dataclass(frozen=True)
class Solver:
    """Everything that the searches of one run share.

    - ``name``, ``method``, ``settings``: the method, and its config
    - ``models``: the model of each agent
    - ``votes``: see :class:`SearchFrame`
    """

    name: str
    method: SearchMethod
    settings: Config
    models: Mapping[Role, Model]
    prompts: PromptSet
    agents: AgentSettings
    budget: Budget
    lab: Lab
    seed: int
    parallel: int = 4
    votes: int = 1
    watcher: Watcher | None = None

    async def solve(self, problem: Problem) -> SearchTrace:
        """Search for the rule, then answer the test inputs and grade the answers.

        If a model could not be reached any more, the trace has ``ended`` = "model" and no test results.
        """
        meter = Meter(self.budget)
        agents = self.agents if self.method.form is None else self.agents.model_copy(update={"form": self.method.form})
        team = AgentTeam(problem.examples, self.models, self.prompts, agents, meter, self.seed)
        frame = SearchFrame(
            problem.examples,
            team,
            self.lab,
            meter,
            parallel=self.parallel,
            votes=self.votes,
            watcher=self.watcher,
        )
        solution = await self._search(frame)
        checkpoints: list[_Checkpoint] = []
        if solution.ended != "model":
            try:
                checkpoints = await self._predict(solution, problem.held_out.inputs(solution), team, meter)
            except ModelUnreachable as error:
                _say_why(error)
                solution = replace(solution, ended="model")
        tests, course = _graded(problem, solution, checkpoints)
        return SearchTrace(
            problem=problem.name,
            family=problem.examples.family,
            method=self.name,
            seed=self.seed,
            pairs=traced_pairs(problem.examples),
            nodes=[traced_node(node) for node in frame.tree.nodes],
            ended=solution.ended,
            answer=frame.answer,
            calls=meter.calls,
            tokens=meter.tokens,
            seconds=meter.seconds,
            agents=dict(team.counts),
            tests=tests,
            course=course,
            raw=course[-1].raw if course else 0.0,
            task=course[-1].task if course else 0.0,
        )

    async def _search(self, frame: SearchFrame) -> Solution:
        if self.method.search is None:
            return frame.end("budget")
        try:
            return frame.end(await self.method.search(frame, self.settings))
        except ModelUnreachable as error:
            _say_why(error)
            return frame.end("model")

    async def _predict(
        self, solution: Solution, inputs: Sequence[Value], team: AgentTeam, meter: Meter
    ) -> list[_Checkpoint]:
        """The predictions for all test inputs at every point of the course; the last ones are the answer."""
        if isinstance(self.settings, DirectConfig):
            answers = await answer_directly(team, meter, inputs, self.settings)
            return [_Checkpoint(one.calls, one.tokens, 0.0, one.predictions) for one in answers]
        outputs: dict[str, list[Value | Missing]] = {}
        for program in dict.fromkeys(program for best in solution.course for program in best.programs):
            outputs[program] = await self.lab.apply(program, inputs)
        return [
            _Checkpoint(best.calls, best.tokens, best.coherent, _voted([outputs[one] for one in best.programs]))
            for best in solution.course
        ] or [_Checkpoint(solution.calls, solution.tokens, 0.0, (Missing("no program was found"),) * len(inputs))]


@dataclass(frozen=True)
class _Checkpoint:
    calls: int
    tokens: int
    coherent: float
    predictions: tuple[Value | Missing, ...]


def _voted(outputs: Sequence[Sequence[Value | Missing]]) -> tuple[Value | Missing, ...]:
    """For each input the value that most programs give."""
    return tuple(majority(column) for column in zip(*outputs, strict=True))


def _say_why(error: ModelUnreachable) -> None:
    """Say why a model gave no answer. Equal reasons are said once."""
    say_once(f"A model gave no answer: {one_line(error)}")


def _graded(
    problem: Problem, solution: Solution, checkpoints: Sequence[_Checkpoint]
) -> tuple[list[TracedTest], list[TracedCheckpoint]]:
    """Grade the predictions of every checkpoint, and describe the last ones pair by pair."""
    if not checkpoints:
        return [], []
    grades = [problem.held_out.grade(point.predictions) for point in checkpoints]
    course = [
        TracedCheckpoint(
            calls=point.calls, tokens=point.tokens, coherent=point.coherent, raw=grade.raw, task=grade.task
        )
        for point, grade in zip(checkpoints, grades, strict=True)
    ]
    inputs = problem.held_out.inputs(solution)
    tests = [
        TracedTest(input=shown(value), predicted=shown(found), right=fits)
        for value, found, fits in zip(inputs, checkpoints[-1].predictions, grades[-1].right, strict=True)
    ]
    return tests, course
