"""Hypotheses, and what execution and the agents say about them."""

from __future__ import annotations

from dataclasses import dataclass

from skillweave.reason.problem import Missing, Value


@dataclass(frozen=True)
class Hypothesis:
    """A rule.

    - ``rule``: in words; empty if the agent wrote only the program
    - ``program``: as a Python text that defines ``f(x)``
    """

    rule: str
    program: str


@dataclass(frozen=True)
class Evaluation:
    """What a program does on the training inputs and on probe inputs.

    - ``outcomes``: for each training pair, the value it gives, or :class:`Missing` with the error
    - ``solved``: for each training pair, whether that value is right
    - ``behaviour``: a digest of the outcomes on training and probe inputs: equal programs have equal digests, however
      different their texts. Errors count by their kind only.
    """

    outcomes: tuple[Value | Missing, ...]
    solved: tuple[bool, ...]
    behaviour: str

    @property
    def coherent(self) -> float:
        """The share of training pairs that are solved, in [0, 1]."""
        return sum(self.solved) / len(self.solved)

    @property
    def ran(self) -> bool:
        """Whether the program gave a value for any training pair."""
        return any(not isinstance(outcome, Missing) for outcome in self.outcomes)


@dataclass(frozen=True)
class Proposal:
    """What a proposer or refiner made: a hypothesis, or the reason why its answer could not be read, even repaired."""

    hypothesis: Hypothesis | None
    failure: str | None = None


@dataclass(frozen=True)
class Note:
    """What the critic says about a failing hypothesis: which part of the rule is wrong, on which pair, and why.

    - ``pair``: the index of the training pair from 0, or None if the critic names none
    """

    part: str
    why: str
    pair: int | None = None

    @property
    def text(self) -> str:
        """The note as one line."""
        return ": ".join(words for words in (self.part, self.why) if words)


@dataclass(frozen=True)
class Judgement:
    """What the judge says about a hypothesis that cannot be executed.

    - ``consistent``: how well the rule agrees with the examples, in [0, 1]
    - ``says_more``: whether it says more than the rule that it was made from
    """

    consistent: float
    says_more: bool
