"""Inductive problems: the example pairs that a search may read, and the test pairs that stay sealed until it has ended.

The types keep the two apart. A search takes :class:`ExamplePairs`, which do not refer to the test pairs. Only a
:class:`~skillweave.reason.solution.Solution`, which a search returns when it ends, opens the test inputs, and nothing
returns the test outputs: :meth:`HeldOut.grade` compares predictions with them and returns the grade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from skillweave.files.hashes import digest
from skillweave.reason.solution import Solution
from skillweave.tasks.verifiers.code_result import same_result

Value = Any
"""Plain data as JSON has it: None, a bool, a number, a text, or a list or mapping of these."""


class Missing:
    """In place of a predicted output: there is none, because the program failed or the model gave no readable answer.

    It equals no value, so it is never right.
    """

    def __init__(self, why: str) -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"<no output: {self.why}>"


@dataclass(frozen=True)
class IOPair:
    """One example of the rule: an input and the output that the rule gives for it."""

    input: Value
    output: Value


@dataclass(frozen=True)
class ExamplePairs:
    """What a search may read of a problem.

    - ``name``: unique within a file of problems
    - ``pairs``: the training pairs, at least one
    - ``family``: the kind of the problem, for tables; empty if the file names none
    """

    name: str
    pairs: tuple[IOPair, ...]
    family: str = ""

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The inputs of the training pairs."""
        return tuple(pair.input for pair in self.pairs)


@dataclass(frozen=True)
class Grade:
    """How many predictions are right, pair by pair."""

    right: tuple[bool, ...]

    @property
    def raw(self) -> float:
        """The share of test pairs that are right, in [0, 1]."""
        return sum(self.right) / len(self.right)

    @property
    def task(self) -> float:
        """1.0 if all test pairs are right, else 0.0."""
        return float(all(self.right))


class HeldOut:
    """The sealed test pairs of one problem; at least one."""

    __slots__ = ("__pairs",)

    def __init__(self, pairs: Sequence[IOPair]) -> None:
        if not pairs:
            raise ValueError("a problem needs at least one test pair")
        self.__pairs = tuple(pairs)

    def __len__(self) -> int:
        return len(self.__pairs)

    def __repr__(self) -> str:
        return f"<{len(self)} sealed test pairs>"

    @property
    def digest(self) -> str:
        """A digest of the test pairs."""
        return digest([[pair.input, pair.output] for pair in self.__pairs])

    def inputs(self, solution: Solution) -> tuple[Value, ...]:
        """The test inputs, for the solution that a search has ended with. Raises ``TypeError`` without one."""
        if not isinstance(solution, Solution):
            raise TypeError("test inputs are opened by a Solution, which a search returns when it has ended")
        return tuple(pair.input for pair in self.__pairs)

    def grade(self, predictions: Sequence[Value | Missing]) -> Grade:
        """Compare one prediction for each test input. Lists and tuples are alike; ``True`` is not 1."""
        return Grade(
            tuple(
                not isinstance(found, Missing) and same_result(found, pair.output)
                for found, pair in zip(predictions, self.__pairs, strict=True)
            )
        )


@dataclass(frozen=True)
class Problem:
    """An inductive problem: find the rule in ``examples``, and apply it to the inputs of ``held_out``."""

    examples: ExamplePairs
    held_out: HeldOut = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the problem."""
        return self.examples.name

    @property
    def digest(self) -> str:
        """A digest of all pairs. It tells two problems apart, and tells nothing of the test pairs."""
        shown = [[pair.input, pair.output] for pair in self.examples.pairs]
        return digest([self.examples.name, shown, self.held_out.digest])
