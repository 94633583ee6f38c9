"""Questions about a small table in the prompt; the expert answers with a program that contains the table."""

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
from skillweave.tools.toolbox import Toolbox, ToolSession

_COLUMNS = ("price", "stock", "weight", "score", "size", "age")
_TEAMS = ("red", "blue", "green")

TableRow = tuple[str, str, list[int]]
"""Item, team, and the numbers in the columns."""


class TablesSettings(Span):
    """Settings of ``tables``."""

    least: int = Field(4, ge=2, le=100, description="fewest rows of a table")
    most: int = Field(6, ge=2, le=100, description="most rows of a table")
    columns: int = Field(2, ge=1, le=len(_COLUMNS), description="columns of numbers")
    largest: int = Field(99, ge=9, le=10**9, description="greatest number; the smallest is 0")
    questions: tuple[Literal["sum", "max", "mean", "count", "difference"], ...] = Field(
        ("sum", "max", "mean", "count", "difference"), min_length=1, description="the kinds of questions"
    )


def _rows(rng: Random, settings: TablesSettings) -> list[TableRow]:
    """Random rows; all items differ, and there are at least two teams."""
    count = rng.randint(settings.least, settings.most)
    teams = [*rng.sample(_TEAMS, 2), *rng.choices(_TEAMS, k=count - 2)]
    rng.shuffle(teams)
    numbers = [[rng.randint(0, settings.largest) for _ in range(settings.columns)] for _ in range(count)]
    return list(zip(rng.sample(WORDS, count), teams, numbers, strict=True))


def _question(rng: Random, rows: list[TableRow], column: int, kind: str) -> tuple[str, str] | None:
    """A question and its answer; None if the mean lies exactly halfway between two roundings."""
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


def make(rng: Random, settings: TablesSettings) -> tuple[str, str]:
    """A table as CSV, an empty line, and a question: ``What is the sum of price?`` -> ``142``."""
    while True:
        rows = _rows(rng, settings)
        question = _question(rng, rows, rng.randrange(settings.columns), rng.choice(settings.questions))
        if question is not None:
            break
    head = ["item", "team", *_COLUMNS[: settings.columns]]
    lines = [",".join(head), *(",".join([item, team, *map(str, numbers)]) for item, team, numbers in rows)]
    table = "\n".join(lines)
    return f"{table}\n\n{question[0]}", question[1]


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
    """A Python program that contains the prompt's table and prints the answer to its question."""
    table, question = prompt.split("\n\n")
    head = table.split("\n")[0].split(",")
    match, last_line = next((m, line) for pattern, line in _PROGRAMS.items() if (m := re.fullmatch(pattern, question)))
    return (
        f'table = """{table}"""\n'
        'rows = [line.split(",") for line in table.split("\\n")[1:]]\n'
        f"values = [int(row[{head.index(match[1])}]) for row in rows]\n"
        f"{last_line.format(*match.groups()[1:])}"
    )


def toolbox(settings: TablesSettings) -> Toolbox:
    """The tool ``python``, which runs code in the sandbox."""
    tools = Toolbox()
    add_tools(tools, ["python"])
    return tools


def solve(prompt: str, settings: TablesSettings, session: ToolSession) -> list[Message]:
    """One program, then its output as the answer."""
    script = Script(session)
    return script.answer(script.call("python", code=program(prompt)))


BUILTIN = Family(TablesSettings, make, "numeric", toolbox=toolbox, solve=solve)
