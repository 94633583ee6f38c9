"""What all families of generated problems share: programs made of parts, and the things a generator must know of them.

A program is executed here by the functions of its parts, never by ``exec``: its text is only what a model reads and
writes. Tests compare the two.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import ClassVar

from skillweave.reason.problem import Value

_REMEMBERED = 2**16
"""How many programs' behaviours are remembered."""


@dataclass(frozen=True)
class Part:
    """One line of a program.

    - ``kind``: a key of its family's table
    - ``value``: the kind's parameter, if it has one
    - ``word``: the word that the line is about, in a family with words
    """

    kind: str
    value: int | str | None = None
    word: str = ""


Program = tuple[Part, ...]
"""A program is the sequence of its parts, at least one."""


class Family(ABC):
    """A family of problems: its programs, their texts, their behaviour, and their neighbours."""

    name: ClassVar[str]
    probes: Sequence[Value]
    """the inputs on which behaviours are compared"""

    def __init__(self) -> None:
        # Short programs are drawn again and again.
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._digest)

    @abstractmethod
    def draw(self, random: Random, size: int) -> Program | None:
        """A random program with ``size`` parts in its canonical form, or None if the draw is degenerate."""

    @abstractmethod
    def run(self, program: Program, value: Value) -> Value:
        """The output for one input: what the program's text gives in Python."""

    @abstractmethod
    def fits(self, output: Value) -> bool:
        """Whether an output is short enough to stand in a prompt."""

    @abstractmethod
    def source(self, program: Program) -> str:
        """The program as a Python text that defines ``f(x)``."""

    @abstractmethod
    def read(self, source: str) -> Program | None:
        """The program that a text of exactly this family's form is; None for any other text, right or wrong."""

    @abstractmethod
    def rule(self, program: Program) -> str:
        """The rule in words, on one line."""

    @abstractmethod
    def canonical(self, program: Program) -> Program:
        """The program whose outputs on the probes are its behaviour; equal for problems that differ in names only."""

    @abstractmethod
    def inputs(self, random: Random, program: Program, count: int, *, test: bool) -> list[Value] | None:
        """Distinct inputs for training or test pairs, or None if the draw leaves a part of the program unused."""

    @abstractmethod
    def settled(self, program: Program, inputs: Sequence[Value]) -> Program:
        """The same program with its parts in the order in which its text has them, given the training inputs."""

    @abstractmethod
    def neighbours(self, program: Program) -> Iterator[Program]:
        """All programs that differ from it in one part."""

    @abstractmethod
    def mutated(self, random: Random, program: Program) -> Program:
        """The program after one random mistake, as a model makes them; it may behave as before."""

    @abstractmethod
    def fault(self, wrong: Program, right: Program) -> str:
        """The critic's note: which part of ``wrong`` is the first that is wrong. Empty if the parts are equal."""

    def behaviour(self, program: Program) -> str:
        """A digest of the outputs on the probes: equal for programs that do the same, however different their texts."""
        return self._remembered(self.canonical(program))

    def _digest(self, canonical: Program) -> str:
        outputs = repr([self.run(canonical, probe) for probe in self.probes])
        return hashlib.blake2b(f"{self.name} {outputs}".encode(), digest_size=8).hexdigest()
