"""The family `commands`: the input is a text of invented words, and the output is a text of colours.

Some words write a colour, others change what was written so far. It is like MiniSCAN: the words are short examples in
the training pairs, and longer texts of the same words in the test pairs.

Each problem has words and colours of its own, so problems are compared without them: two are the same if they have the
same operations. For the comparison the parts are sorted by operation, and words and colours are renamed in that order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from skillweave.reason.induction.families.program import ProblemFamily, Program, ProgramPart
from skillweave.reason.problem import Value

WORDS = ("dax", "fep", "lug", "kiki", "blick", "wif", "zup", "tufa")
COLOURS = ("RED", "BLUE", "GREEN", "PINK")
LONGEST = 24
"""Most words of an output."""

Words = list[str]


@dataclass(frozen=True)
class _Operation:
    """What a word does: its parameters, its code, its words, and its effect on what was written so far."""

    values: tuple[int, ...]
    code: str
    words: str
    do: Callable[[Words, int], Words]


def _plain(code: str, words: str, do: Callable[[Words], Words]) -> _Operation:
    return _Operation((), code, words, lambda out, _: do(out))


OPERATIONS: dict[str, _Operation] = {
    "again": _Operation(
        (1, 2), "out += out[-1:] * {n}", "adds the last one {n} more times", lambda out, n: out + out[-1:] * n
    ),
    "first_again": _plain("out += out[:1]", "adds the first one again", lambda out: out + out[:1]),
    "double": _plain("out = out + out", "doubles everything", lambda out: out + out),
    "reverse": _plain("out = out[::-1]", "reverses everything", lambda out: out[::-1]),
    "drop_last": _plain("out = out[:-1]", "drops the last one", lambda out: out[:-1]),
    "drop_first": _plain("out = out[1:]", "drops the first one", lambda out: out[1:]),
    "keep_last": _plain("out = out[-1:]", "keeps only the last one", lambda out: out[-1:]),
    "last_to_front": _plain(
        "out = out[-1:] + out[:-1]", "moves the last one to the front", lambda out: out[-1:] + out[:-1]
    ),
}
"""What a word may do to what was written so far. Two more kinds have a colour: ``write`` and ``put_first``."""
_COLOURED = {
    "write": ("out += ['{c}']", "writes {c}"),
    "put_first": ("out = ['{c}'] + out", "puts {c} first"),
}
ALL = tuple(ProgramPart(kind, value) for kind, operation in OPERATIONS.items() for value in operation.values or (None,))
"""Every operation without a colour, with every parameter."""


class Commands(ProblemFamily):
    """Texts of words that write colours or change what was written."""

    name = "commands"

    def __init__(self) -> None:
        super().__init__()
        random = Random(0)
        self.probes = [" ".join(random.choice(WORDS[:6]) for _ in range(1 + number % 8)) for number in range(64)]

    def draw(self, random: Random, size: int) -> Program | None:
        """A random program in which up to three words write a colour, and the others have distinct operations."""
        coloured = random.choice((2, 2, 3)) if size > 3 else random.choice((1, 2))
        colours = random.sample(COLOURS, coloured)
        kinds = ["write"] * coloured
        if coloured > 1 and random.random() < 0.25:
            kinds[-1] = "put_first"
        parts = [ProgramPart(kind, colour) for kind, colour in zip(kinds, colours, strict=True)]
        parts += random.sample(ALL, size - coloured)
        return tuple(replace(part, word=word) for part, word in zip(parts, random.sample(WORDS, size), strict=True))

    def run(self, program: Program, value: Value) -> Value:
        return _run({part.word: part for part in program}, value)

    def fits(self, output: Value) -> bool:
        return 0 < len(output.split()) <= LONGEST

    def source(self, program: Program) -> str:
        lines = [f"        if w == '{part.word}': {_code(part)}" for part in program]
        return "\n".join([_FIRST, *lines, _LAST])

    def read(self, source: str) -> Program | None:
        text = source.rstrip()
        if not text.startswith(f"{_FIRST}\n") or not text.endswith(f"\n{_LAST}"):
            return None
        parts: list[ProgramPart] = []
        for line in text[len(_FIRST) + 1 : -len(_LAST) - 1].split("\n"):
            match = _LINE.fullmatch(line)
            if match is None or match["code"] not in _PARTS or match["word"] in [part.word for part in parts]:
                return None
            parts.append(replace(_PARTS[match["code"]], word=match["word"]))
        return tuple(parts)

    def rule(self, program: Program) -> str:
        return "; ".join(f"{part.word} {_words(part)}" for part in program)

    def canonical(self, program: Program) -> Program:
        parts = sorted(program, key=lambda part: (part.kind, part.value if isinstance(part.value, int) else 0))
        colours = dict(zip(dict.fromkeys(_colours(parts)), COLOURS, strict=False))
        named = [part if part.value not in colours else replace(part, value=colours[part.value]) for part in parts]
        return tuple(replace(part, word=word) for part, word in zip(named, WORDS, strict=False))

    def inputs(self, random: Random, program: Program, count: int, *, test: bool) -> list[Value] | None:
        """``count`` inputs of 1 to 4 words, in which each word occurs twice; for tests, of 5 to 7 words."""
        writers = [part.word for part in program if part.kind in _COLOURED]
        words = [part.word for part in program]
        lengths = (5, 6, 7) if test else (1, 2, 2, 3, 3, 4)
        chosen: list[Value] = []
        deck: list[str] = []
        for _ in range(4 * count):
            length = random.choice(lengths) - 1
            while len(deck) < length:
                deck += random.sample(words, len(words))
            text = " ".join([random.choice(writers), *deck[:length]])
            if text not in chosen:
                del deck[:length]
                chosen.append(text)
            if len(chosen) == count:
                used = " ".join(chosen).split()
                return chosen if test or min(map(used.count, words)) > 1 else None
        return None

    def settled(self, program: Program, inputs: Sequence[Value]) -> Program:
        """The same program, with its words in the order in which the training inputs use them."""
        order = {word: at for at, word in reversed(list(enumerate(" ".join(inputs).split())))}
        return tuple(sorted(program, key=lambda part: order.get(part.word, len(order))))

    def neighbours(self, program: Program) -> Iterator[Program]:
        colours = sorted(set(_colours(program)))
        others = (*ALL, *(ProgramPart(kind, colour) for kind in _COLOURED for colour in colours))
        for at, part in enumerate(program):
            yield program[:at] + program[at + 1 :]
            for other in others:
                if (changed := replace(other, word=part.word)) != part:
                    yield (*program[:at], changed, *program[at + 1 :])

    def mutated(self, random: Random, program: Program) -> Program:
        at = random.randrange(len(program))
        part, what = program[at], random.random()
        if what < 0.1 and len(program) > 2:
            return program[:at] + program[at + 1 :]
        if what < 0.2:
            other = random.choice([place for place in range(len(program)) if place != at])
            swapped = list(program)
            swapped[at] = replace(program[other], word=part.word)
            swapped[other] = replace(part, word=program[other].word)
            return tuple(swapped)
        return (*program[:at], replace(self._instead(random, program, part), word=part.word), *program[at + 1 :])

    def fault(self, wrong: Program, right: Program) -> str:
        """The first word in the order of ``right`` that does something else, is missing, or is too much."""
        has = {part.word: part for part in wrong}
        for part in right:
            if part.word not in has:
                return f"{part.word} is missing"
            if has.pop(part.word) != part:
                return f"{part.word} is wrong"
        return f"{next(iter(has))} is too much" if has else ""

    def _instead(self, random: Random, program: Program, part: ProgramPart) -> ProgramPart:
        """Another operation for a word: another parameter or colour, or another kind."""
        colours = _colours(program) or COLOURS
        if part.kind in _COLOURED and random.random() < 0.5:
            return ProgramPart(random.choice(list(_COLOURED)), random.choice(colours))
        values = OPERATIONS[part.kind].values if part.kind in OPERATIONS else ()
        if values and random.random() < 0.4:
            return ProgramPart(part.kind, random.choice(values))
        if random.random() < 0.15:
            return ProgramPart(random.choice(list(_COLOURED)), random.choice(colours))
        kind = random.choice(list(OPERATIONS))
        return ProgramPart(kind, random.choice(OPERATIONS[kind].values or (None,)))


def _colours(parts: Sequence[ProgramPart]) -> list[str]:
    """The colours of the parts that have one, in order."""
    return [part.value for part in parts if isinstance(part.value, str)]


def _run(does: dict[str, ProgramPart], text: str) -> str:
    out: Words = []
    for word in text.split():
        part = does.get(word)
        if part is None:
            continue
        if part.kind == "write":
            out = [*out, str(part.value)]
        elif part.kind == "put_first":
            out = [str(part.value), *out]
        else:
            out = OPERATIONS[part.kind].do(out, int(part.value or 0))
    return " ".join(out)


def _code(part: ProgramPart) -> str:
    if part.kind in _COLOURED:
        return _COLOURED[part.kind][0].format(c=part.value)
    return OPERATIONS[part.kind].code.format(n=part.value)


_FIRST, _LAST = "def f(x):\n    out = []\n    for w in x.split():", "    return ' '.join(out)"
_LINE = re.compile(r"        if w == '(?P<word>\w+)': (?P<code>.+)")
_PARTS = {
    _code(part): part for part in (*ALL, *(ProgramPart(kind, colour) for kind in _COLOURED for colour in COLOURS))
}


def _words(part: ProgramPart) -> str:
    if part.kind in _COLOURED:
        return _COLOURED[part.kind][1].format(c=part.value)
    return OPERATIONS[part.kind].words.format(n=part.value)
