"""Questions on a small table in the prompt, answered by a program that holds the table."""

from __future__ import annotations

import re
from random import Random
from typing import Literal

from pydantic import Field

from skillweave.base.chat import Message
from skillweave.tasks.builtin.family import Family, Script
from skillweave.tasks.builtin.kind import Span
from skillweave.tasks.builtin.words import WORDS
from skillweave.tools.builtin import add_tools
from skillweave.tools.toolbox import Session, Toolbox

_COLUMNS = ("price", "stock", "weight", "score", "size", "age")
_TEAMS = ("red", "blue", "green")

Row = tuple[str, str, list[int]]
"""Item, team, and the numbers of the columns."""


class Settings(Span):
    """Tables of ``least`` to ``most`` rows with ``columns`` columns of numbers from 0 to ``largest``."""

    least: int = Field(4, ge=2, le=100)
    most: int = Field(6, ge=2, le=100)
    columns: int = Field(2, ge=1, le=len(_COLUMNS))
    largest: int = Field(99, ge=9, le=10**9)
    questions: tuple[Literal["sum", "max", "mean", "count", "difference"], ...] = Field(
        ("sum", "max", "mean", "count", "difference"), min_length=1
    )
    """What may be asked."""


def _rows(rng: Random, settings: Settings) -> list[Row]:
    """Rows with items that are all different and at least two teams."""
    count = rng.randint(settings.least, settings.most)
    teams = [*rng.sample(_TEAMS, 2), *rng.choices(_TEAMS, k=count - 2)]
    rng.shuffle(teams)
    numbers = [[rng.randint(0, settings.largest) for _ in range(settings.columns)] for _ in range(count)]
    return list(zip(rng.sample(WORDS, count), teams, numbers, strict=True))


def _ask(rng: Random, rows: list[Row], column: int, kind: str) -> tuple[str, str] | None:
    """The question and its answer; None where the mean lies halfway between two roundings."""
    name, values = _COLUMNS[column], [numbers[column] for _, _, numbers in rows]
    if kind == "sum":
        return f"What is the sum of {name}?", str(sum(values))
    if kind == "max":
        return f"What is the largest {name}?", str(max(values))
    if kind == "mean":
        halfway = 20 * sum(values) % (2 * len(values)) == len(values)
        mean = str(round(sum(values) / len(values), 1))
        return None if halfway else (f"What is the mean {name}, rounded to 1 decimal place?", mean)
    if kind == "count":
        bound = rng.choice(values)
        return f"How many rows have {name} above {bound}?", str(sum(value > bound for value in values))
    one, other = rng.sample(sorted({team for _, team, _ in rows}), 2)
    totals = [sum(numbers[column] for _, team, numbers in rows if team == which) for which in (one, other)]
    return f"What is the total {name} of team {one} minus that of team {other}?", str(totals[0] - totals[1])


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """A table as CSV, an empty line, and ``What is the sum of price?`` -> ``142``."""
    while True:
        rows = _rows(rng, settings)
        asked = _ask(rng, rows, rng.randrange(settings.columns), rng.choice(settings.questions))
        if asked is not None:
            break
    head = ["item", "team", *_COLUMNS[: settings.columns]]
    lines = [",".join(head), *(",".join([item, team, *map(str, numbers)]) for item, team, numbers in rows)]
    table = "\n".join(lines)
    return f"{table}\n\n{asked[0]}", asked[1]


_PROGRAMS = {
    r"What is the sum of (\w+)\?": "print(sum(values))",
    r"What is the largest (\w+)\?": "print(max(values))",
    r"What is the mean (\w+), rounded to 1 decimal place\?": "print(round(sum(values) / len(values), 1))",
    r"How many rows have (\w+) above (\d+)\?": "print(len([v for v in values if v > {0}]))",
    r"What is the total (\w+) of team (\w+) minus that of team (\w+)\?": (
        'print(sum(v for v, row in zip(values, rows) if row[1] == "{0}")'
        ' - sum(v for v, row in zip(values, rows) if row[1] == "{1}"))'
    ),
}


def program(prompt: str) -> str:
    """Python that holds the prompt's table and prints the answer to its question."""
    table, question = prompt.split("\n\n")
    head = table.split("\n")[0].split(",")
    asked, last = next((m, line) for pattern, line in _PROGRAMS.items() if (m := re.fullmatch(pattern, question)))
    return (
        f'table = """{table}"""\n'
        'rows = [line.split(",") for line in table.split("\\n")[1:]]\n'
        f"values = [int(row[{head.index(asked[1])}]) for row in rows]\n"
        f"{last.format(*asked.groups()[1:])}"
    )


def toolbox(settings: Settings) -> Toolbox:
    """Python in the sandbox."""
    tools = Toolbox()
    add_tools(tools, ["python"])
    return tools


def solve(prompt: str, settings: Settings, session: Session) -> list[Message]:
    """One program, then what it printed."""
    script = Script(session)
    return script.answer(script.call("python", code=program(prompt)))


BUILTIN = Family(Settings, make, "numeric", toolbox=toolbox, solve=solve)
