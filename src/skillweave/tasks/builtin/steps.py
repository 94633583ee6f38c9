"""Arithmetic in many steps; a calculator does each step on the result of the last one."""

from __future__ import annotations

import re
from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from skillweave.base.chat import Message
from skillweave.tasks.builtin.family import Family, Script
from skillweave.tasks.builtin.kind import Span
from skillweave.tools.builtin import calculator
from skillweave.tools.toolbox import Toolbox, ToolSession

_WORDS = {"+": "Add", "-": "Subtract", "*": "Multiply by"}
_SIGNS = {word: sign for sign, word in _WORDS.items()}


class StepsSettings(Span):
    """Settings of ``steps``; the operations are ``+``, ``-`` and ``*``."""

    least: int = Field(2, ge=1, le=100, description="fewest operations in a prompt")
    most: int = Field(4, ge=1, le=100, description="most operations in a prompt")
    digits: int = Field(2, ge=1, le=6, description="most digits of a number")
    largest: int = Field(
        999_999,
        le=10**12,
        description="no intermediate result is negative or greater than this; at least twice the greatest number",
    )
    style: Literal["expression", "story"] = Field(
        "story",
        description="expression: '((3+4)*2)-5'; story: 'Start with 3. Add 4. Multiply by 2. Subtract 5. What is it "
        "now?'",
    )

    @model_validator(mode="after")
    def _roomy(self) -> Self:
        if self.largest < 2 * 10**self.digits:
            raise ValueError(
                f"largest ({self.largest}) must be at least {2 * 10**self.digits} for {self.digits} digits"
            )
        return self


def _apply(value: int, sign: str, number: int) -> int:
    return {"+": value + number, "-": value - number, "*": value * number}[sign]


def _step(rng: Random, value: int, settings: StepsSettings) -> tuple[str, int]:
    """A sign and a number that keep the result in bounds and change it (no product with 0 or 1)."""
    number = rng.randrange(1, 10**settings.digits)
    signs = [sign for sign in "+-*" if 0 <= _apply(value, sign, number) <= settings.largest]
    if value == 0 or number == 1:
        signs = [sign for sign in signs if sign != "*"]
    return rng.choice(signs), number


def make(rng: Random, settings: StepsSettings) -> tuple[str, str]:
    """``Start with 7. Add 5. Multiply by 3. What is it now?`` -> ``36``."""
    start = value = rng.randrange(1, 10**settings.digits)
    steps: list[tuple[str, int]] = []
    for _ in range(rng.randint(settings.least, settings.most)):
        sign, number = _step(rng, value, settings)
        steps.append((sign, number))
        value = _apply(value, sign, number)
    if settings.style == "story":
        story = " ".join(f"{_WORDS[sign]} {number}." for sign, number in steps)
        return f"Start with {start}. {story} What is it now?", str(value)
    text = str(start)
    for index, (sign, number) in enumerate(steps):
        text = f"({text}){sign}{number}" if index else f"{text}{sign}{number}"
    return text, str(value)


def _read(prompt: str) -> tuple[str, list[tuple[str, str]]]:
    """The first number and the steps (sign, number) of a prompt of either style, in the order of their execution."""
    first = re.search(r"\d+", prompt)
    assert first is not None
    rest = prompt[first.end() :]
    steps = [(_SIGNS[word], number) for word, number in re.findall(rf"({'|'.join(_SIGNS)}) (\d+)", rest)]
    return first[0], steps or re.findall(r"([-+*])(\d+)", rest)


def toolbox(settings: StepsSettings) -> Toolbox:
    """The calculator."""
    return Toolbox([calculator])


def solve(prompt: str, settings: StepsSettings, session: ToolSession) -> list[Message]:
    """One call for each step, on the last result of the calculator."""
    script = Script(session)
    value, steps = _read(prompt)
    for sign, number in steps:
        value = script.call("calculator", expression=f"{value}{sign}{number}")
    return script.answer(value)


BUILTIN = Family(StepsSettings, make, "numeric", toolbox=toolbox, solve=solve)
