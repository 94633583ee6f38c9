"""The family `lists`: the input is a list of small numbers, and the program is a chain of one-line steps.

Two chains are the same if they give the same outputs on 64 fixed lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from random import Random

from skillweave.reason.induction.families.program import ProblemFamily, Program, ProgramPart
from skillweave.reason.problem import Value

LONGEST = 12
"""Most items of an output."""
LARGEST = 99
"""Largest absolute value of a number in an output."""

Numbers = list[int]


@dataclass(frozen=True)
class _Step:
    """A kind of step: its parameters, what stands behind ``x = `` in its line, its words, and what it does."""

    values: tuple[int, ...]
    code: str
    words: str
    do: Callable[[Numbers, int], Numbers]


def _plain(code: str, words: str, do: Callable[[Numbers], Numbers]) -> _Step:
    return _Step((), code, words, lambda x, _: do(x))


STEPS: dict[str, _Step] = {
    "sort": _plain("sorted(x)", "sort", sorted),
    "reverse": _plain("x[::-1]", "reverse", lambda x: x[::-1]),
    "distinct": _plain("list(dict.fromkeys(x))", "drop what came before", lambda x: list(dict.fromkeys(x))),
    "above": _Step((3, 5), "[v for v in x if v > {n}]", "keep those above {n}", lambda x, n: [v for v in x if v > n]),
    "below": _Step((4, 6), "[v for v in x if v < {n}]", "keep those below {n}", lambda x, n: [v for v in x if v < n]),
    "even": _plain("[v for v in x if v % 2 == 0]", "keep the even ones", lambda x: [v for v in x if v % 2 == 0]),
    "plus": _Step((1, 2), "[v + {n} for v in x]", "add {n} to each", lambda x, n: [v + n for v in x]),
    "times": _Step((2,), "[v * {n} for v in x]", "multiply each by {n}", lambda x, n: [v * n for v in x]),
    "drop": _Step((1, 2), "x[{n}:]", "drop the first {n}", lambda x, n: x[n:]),
    "drop_last": _Step((1,), "x[:-{n}]", "drop the last {n}", lambda x, n: x[:-n]),
    "first": _Step((2, 3), "x[:{n}]", "keep the first {n}", lambda x, n: x[:n]),
    "last": _Step((2,), "x[-{n}:]", "keep the last {n}", lambda x, n: x[-n:]),
    "every_second": _plain("x[::2]", "keep every second", lambda x: x[::2]),
    "rotate": _plain("x[1:] + x[:1]", "move the first to the end", lambda x: x[1:] + x[:1]),
    "twice": _plain("x + x", "write it twice", lambda x: x + x),
    "put_last": _Step((0,), "x + [{n}]", "put {n} last", lambda x, n: [*x, n]),
    "largest": _plain("[max(x, default=0)]", "take the largest", lambda x: [max(x, default=0)]),
}
_random = Random(0)
PROBES: list[Numbers] = [[_random.randrange(10) for _ in range(length)] for length in range(8) for _ in range(8)]
"""The inputs on which chains are compared: eight lists of each length from 0 to 7."""
ALL = tuple(ProgramPart(kind, value) for kind, step in STEPS.items() for value in step.values or (None,))
"""Every step with every parameter."""


class Lists(ProblemFamily):
    """Chains of steps on lists of numbers."""

    name = "lists"

    probes = PROBES

    def draw(self, random: Random, size: int) -> Program | None:
        kinds = random.choices(list(STEPS), k=size)
        program = self.settled(
            tuple(ProgramPart(kind, random.choice(STEPS[kind].values or (None,))) for kind in kinds), ()
        )
        return None if _degenerate(program) else program

    def run(self, program: Program, value: Value) -> Value:
        return _run(program, value)

    def fits(self, output: Value) -> bool:
        return _fits(output)

    def source(self, program: Program) -> str:
        return "\n".join([_FIRST, *map(_line, program), _LAST])

    def read(self, source: str) -> Program | None:
        lines = source.rstrip().split("\n")
        steps = lines[1:-1]
        if lines[0] != _FIRST or lines[-1] != _LAST or not steps or not all(line in _PARTS for line in steps):
            return None
        return tuple(_PARTS[line] for line in steps)

    def rule(self, program: Program) -> str:
        return ", then ".join(STEPS[part.kind].words.format(n=part.value) for part in program)

    def canonical(self, program: Program) -> Program:
        return program

    def inputs(self, random: Random, program: Program, count: int, *, test: bool) -> list[Value] | None:
        chosen: list[Value] = []
        while len(chosen) < count:
            length = random.choice((0, 1, 2, 3, 4, 5, 6, 7) if test else (2, 3, 4, 5, 5, 6, 7))
            x = [random.randrange(10) for _ in range(length)]
            if x not in chosen:
                chosen.append(x)
        return chosen

    def settled(self, program: Program, inputs: Sequence[Value]) -> Program:
        """The same steps; those next to each other whose order does not matter are put in one fixed order.

        So a behaviour has fewer texts.
        """
        parts = list(program)
        for end in range(len(parts) - 1, 0, -1):
            for at in range(end):
                one, two = parts[at], parts[at + 1]
                if _PLACES[two] < _PLACES[one] and _commute(one, two):
                    parts[at], parts[at + 1] = two, one
        return tuple(parts)

    def neighbours(self, program: Program) -> Iterator[Program]:
        for at in range(len(program)):
            if len(program) > 1:
                yield program[:at] + program[at + 1 :]
            yield from ((*program[:at], other, *program[at + 1 :]) for other in ALL if other != program[at])
        for at in range(len(program) + 1):
            yield from ((*program[:at], other, *program[at:]) for other in ALL)

    def mutated(self, random: Random, program: Program) -> Program:
        at = random.randrange(len(program))
        before, part, after = program[:at], program[at], program[at + 1 :]
        others = [value for value in STEPS[part.kind].values if value != part.value]
        what = random.random()
        if what < 0.35 and others:
            return (*before, ProgramPart(part.kind, random.choice(others)), *after)
        if what < 0.65:
            return (*before, _random_step(random), *after)
        if what < 0.8 and len(program) > 1:
            return before + after
        if what < 0.92 or len(program) == 1:
            return (*before, *random.sample((part, _random_step(random)), 2), *after)
        other = random.choice([place for place in range(len(program)) if place != at])
        swapped = list(program)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        return tuple(swapped)

    def fault(self, wrong: Program, right: Program) -> str:
        at, what = _first_edit(wrong, right)
        if what == "insert":
            return f"a step is missing before step {at + 1}" if at < len(wrong) else "a step is missing at the end"
        return {"replace": f"step {at + 1} is wrong", "remove": f"step {at + 1} is too much", "": ""}[what]


def _line(part: ProgramPart) -> str:
    return f"    x = {STEPS[part.kind].code.format(n=part.value)}"


_FIRST, _LAST = "def f(x):", "    return x"
_PARTS = {_line(part): part for part in ALL}
_PLACES = {part: at for at, part in enumerate(ALL)}


def _run(chain: Program, x: Numbers) -> Numbers:
    for part in chain:
        x = STEPS[part.kind].do(x, int(part.value or 0))
    return x


def _outputs(chain: Program) -> tuple[tuple[int, ...], ...]:
    """The outputs on the probes."""
    return tuple(tuple(_run(chain, probe)) for probe in PROBES)


@lru_cache(maxsize=2**16)
def _degenerate(chain: Program) -> bool:
    """Whether a chain has outputs that are too long or too often equal, or does what a shorter chain does.

    All chains of fewer steps are compared, up to two steps; of longer ones, those that leave out one step.
    """
    outputs = _outputs(chain)
    return (
        not all(map(_fits, outputs))
        or Counter(outputs).most_common(1)[0][1] > len(outputs) // 2
        or outputs in _shorter(min(len(chain), 3))
        or any(outputs == _outputs(chain[:at] + chain[at + 1 :]) for at in range(len(chain)))
    )


def _fits(output: Sequence[int]) -> bool:
    return len(output) <= LONGEST and all(abs(number) <= LARGEST for number in output)


@cache
def _shorter(size: int) -> frozenset[tuple[tuple[int, ...], ...]]:
    """The outputs of all chains of fewer steps than ``size``; the chain of no step is the identity."""
    return frozenset(_outputs(chain) for length in range(size) for chain in product(ALL, repeat=length))


@cache
def _commute(one: ProgramPart, two: ProgramPart) -> bool:
    """Whether the order of two steps does not matter."""
    return _outputs((one, two)) == _outputs((two, one))


def _random_step(random: Random) -> ProgramPart:
    kind = random.choice(list(STEPS))
    return ProgramPart(kind, random.choice(STEPS[kind].values or (None,)))


def _first_edit(wrong: Program, right: Program) -> tuple[int, str]:
    """The first edit of a shortest edit script from ``wrong`` to ``right``: its place in ``wrong``, and what it is.

    The edit is ``replace``, ``remove`` or ``insert``, or empty if there is nothing to edit.
    """

    @cache
    def cost(i: int, j: int) -> int:
        """The edits from ``wrong[i:]`` to ``right[j:]``."""
        if i == len(wrong) or j == len(right):
            return len(wrong) - i + len(right) - j
        return min(cost(i + 1, j + 1) + (wrong[i] != right[j]), 1 + cost(i + 1, j), 1 + cost(i, j + 1))

    i = 0
    while i < min(len(wrong), len(right)) and wrong[i] == right[i]:
        i += 1
    if wrong == right:
        return i, ""
    if i < len(wrong) and i < len(right) and cost(i, i) == 1 + cost(i + 1, i + 1):
        return i, "replace"
    return i, "remove" if i < len(wrong) and cost(i, i) == 1 + cost(i + 1, i) else "insert"
