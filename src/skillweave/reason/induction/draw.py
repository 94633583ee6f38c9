"""Draw problems and failing programs of a family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from random import Random

from skillweave.reason.hypothesis import Evaluation
from skillweave.reason.induction.families import Family, Program
from skillweave.reason.problem import ExamplePairs, IOPair

_TRIES = 3000
"""Draws of one problem or one failing program before the draw is given up."""


@dataclass(frozen=True)
class DrawnProblem:
    """A generated problem with the program that it was made from.

    - ``behaviour``: the digest of the program's behaviour, without the names of the problem
    - ``test``: empty for a problem that only training rows are made of
    """

    family: Family
    program: Program
    behaviour: str
    train: tuple[IOPair, ...]
    test: tuple[IOPair, ...] = ()

    @property
    def examples(self) -> ExamplePairs:
        """The training pairs, as the agents see them."""
        return ExamplePairs("", self.train, self.family.name)


def draw_problem(
    family: Family,
    random: Random,
    sizes: tuple[int, int],
    pairs: tuple[int, int],
    *,
    without: Container[str] = (),
    tests: int = 0,
    refused: Counter[str] | None = None,
) -> DrawnProblem:
    """A random problem whose behaviour is not in ``without``.

    - ``sizes``, ``pairs``: the fewest and the most parts and training pairs
    - ``tests``: how many test pairs. If there are some, the training pairs determine them: no program that differs in
      one part fits all training pairs and misses a test pair.
    - ``refused``: counts the draws that were refused, by reason

    Raises ``ValueError`` if too many draws are refused: ``without`` then holds almost all behaviours.
    """
    refused = Counter() if refused is None else refused
    for _ in range(_TRIES):
        program = family.draw(random, random.randint(*sizes))
        if program is None:
            refused["degenerate"] += 1
            continue
        behaviour = family.behaviour(program)
        if behaviour in without:
            refused["held out"] += 1
            continue
        train = _pairs(family, random, program, random.randint(*pairs), test=False)
        if train is None:
            refused["poor pairs"] += 1
            continue
        program = family.settled(program, [pair.input for pair in train])
        if not tests:
            return DrawnProblem(family, program, behaviour, train)
        test = _pairs(family, random, program, tests, test=True)
        if test is None or {str(pair.input) for pair in test} & {str(pair.input) for pair in train}:
            refused["poor pairs"] += 1
        elif not determined(family, program, train, test):
            refused["not determined"] += 1
        else:
            return DrawnProblem(family, program, behaviour, train, test)
    raise ValueError(f"no problem of {family.name} with {sizes} parts in {_TRIES} draws: {dict(refused)}")


def determined(family: Family, program: Program, train: tuple[IOPair, ...], test: tuple[IOPair, ...]) -> bool:
    """Whether every program that differs in one part and fits all training pairs also fits all test pairs."""
    return not any(
        all(family.run(other, pair.input) == pair.output for pair in train)
        and any(family.run(other, pair.input) != pair.output for pair in test)
        for other in family.neighbours(program)
    )


def draw_failing(problem: DrawnProblem, random: Random, mistakes: int) -> Program | None:
    """The problem's program after some random mistakes; it fails on a training pair. None if none was found."""
    family = problem.family
    for _ in range(_TRIES):
        wrong = problem.program
        for _ in range(mistakes):
            wrong = family.mutated(random, wrong)
        outcomes = [(family.run(wrong, pair.input), pair.output) for pair in problem.train]
        failing = [found for found, wanted in outcomes if found != wanted]
        if failing and all(map(family.fits, failing)):
            return wrong
    return None


def evaluation(problem: DrawnProblem, program: Program) -> Evaluation:
    """What a program gives for the training inputs; the behaviour is left empty."""
    outcomes = tuple(problem.family.run(program, pair.input) for pair in problem.train)
    solved = tuple(outcome == pair.output for outcome, pair in zip(outcomes, problem.train, strict=True))
    return Evaluation(outcomes, solved, "")


def _pairs(family: Family, random: Random, program: Program, count: int, *, test: bool) -> tuple[IOPair, ...] | None:
    """Pairs of the program, or None if they tell too little of it.

    At least half of the outputs differ, at most one is empty, and some differ from their inputs.
    """
    inputs = family.inputs(random, program, count, test=test)
    if inputs is None:
        return None
    pairs = tuple(IOPair(value, family.run(program, value)) for value in inputs)
    outputs = {str(pair.output) for pair in pairs}
    if (
        not all(family.fits(pair.output) for pair in pairs)
        or 2 * len(outputs) < count
        or sum(not pair.output for pair in pairs) > 1
        or all(pair.input == pair.output for pair in pairs)
    ):
        return None
    return pairs
