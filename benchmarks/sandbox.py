"""Measure how many small functions a second the lab runs, and what programs that fail cost the others.

Claim: the sandbox runs at least 2,000 small functions a second on two cores. A function is one program with one call of
``Lab.evaluate``: a new interpreter state, 8 training and 16 probe inputs, comparison and digest. Many callers wait at
once, as in a search. Beside it stand the same runs without the lab (threads that only run programs), and
``sandbox.run`` with its flattened values, one after the other.

The second claim: of programs among which some loop forever, raise, or allocate without end, each good one still gets
its own values. The processor time of the endless ones is lost, so the rate falls; it is in the table.

Figures are medians over the repeats, with their range.

    python -m benchmarks.sandbox            under a minute
    python -m benchmarks.sandbox --quick    seconds
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, judged, positive, run
from skillweave.reason.hypothesis import Evaluation
from skillweave.reason.lab import ENDING, LIMITS, Lab
from skillweave.reason.problem import ExamplePairs, IOPair
from skillweave.report import Table
from skillweave.tools import sandbox

NAME = "sandbox"
LAB = "Lab.evaluate, 64 callers at once"
THREADS = "the sandbox alone, 2 threads"
PLAIN = "sandbox.run, one after the other"
MIXED = "Lab.evaluate, 2 of 100 loop forever"

_INPUTS = [[3, 1, 2], [9, 9], [4, 0, 7, 1], [5], [2, 8, 6, 4, 0], [1, 2], [7, 3, 3], [6, 5]]
_BODIES = [
    "    return sorted(x)[-(len(x) + {n}):]",
    "    return [item + {n} for item in x]",
    "    out = []\n    for item in x:\n        if item != {n}:\n            out.append(item)\n    return out",
    "    return x[::-1] + [{n}]",
    "    return [sum(x) + {n}] if len(x) > 1 else x",
    "    seen = set()\n    return [item for item in x if not (item in seen or seen.add(item))][: {n} + 9]",
]
_FAILING = [
    "def f(x):\n    while True:\n        pass  # {n}",
    "def f(x):\n    raise ValueError({n})",
    "def f(x):\n    out = [{n}]\n    while True:\n        out += out",
    "def f(x):\n    return f(x)  # {n}",
    "def f(x) return {n}",
]
EXAMPLES = ExamplePairs("reverse", tuple(IOPair(x, x[::-1]) for x in _INPUTS))


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro"])
    parser.add_argument("--repeats", type=positive, default=7, help="of each measurement (default: %(default)s)")
    options = parser.parse_args(argv)
    record = Record.begin(NAME, options, argv, [0])
    count = 200 if options.quick else 2000
    ways: dict[str, Callable[[list[str]], object]] = {
        LAB: _in_lab,
        THREADS: _in_threads,
        PLAIN: lambda texts: [sandbox.run(f"{text}\n[f(x) for x in {_INPUTS * 3}]") for text in texts],
        MIXED: lambda texts: _in_lab(_with_loops(texts)),
    }
    for way in ways.values():
        way(_programs(50, 10**6))  # once, to warm up
    for repeat in range(2 if options.quick else options.repeats):
        for number, (name, way) in enumerate(ways.items()):
            texts = _programs(count if name != MIXED else min(count, 400), repeat * 10 + number)
            began = time.perf_counter()
            way(texts)
            seconds = time.perf_counter() - began
            record.rows.append({"way": name, "repeat": repeat, "functions": len(texts), "seconds": seconds})
    rates = {name: [row["functions"] / row["seconds"] for row in record.rows if row["way"] == name] for name in ways}
    right, good = _beside_failing(100 if options.quick else 400)
    record.rows.append({"way": "beside failing programs", "good": good, "right": right})
    median = statistics.median(rates[LAB])
    record.claims = [
        judged("functions a second, Lab.evaluate", median, min(rates[LAB]), max(rates[LAB]), ">= 2000"),
        judged("share of good programs with their own values beside failing ones", *[right / good] * 3, ">= 1"),
    ]
    record.finish(_table(rates), _plot(rates))


def _programs(count: int, batch: int) -> list[str]:
    """Different small functions; those of one batch are in no other."""
    return [
        "def f(x):\n" + _BODIES[number % len(_BODIES)].format(n=batch * 10_000 + number) + "\n"
        for number in range(count)
    ]


def _with_loops(texts: list[str]) -> list[str]:
    return [_FAILING[0].format(n=text) if number % 50 == 25 else text for number, text in enumerate(texts)]


def _in_lab(texts: list[str]) -> list[Evaluation]:
    with Lab() as lab:
        return asyncio.run(_evaluated(lab, texts))


async def _evaluated(lab: Lab, texts: list[str]) -> list[Evaluation]:
    """The evaluation of each text, asked for by 64 callers, each of which waits for one before it asks for the next."""
    found: dict[int, Evaluation] = {}

    async def caller(first: int) -> None:
        for number in range(first, len(texts), 64):
            found[number] = await lab.evaluate(texts[number], EXAMPLES)

    await asyncio.gather(*(caller(first) for first in range(64)))
    return [found[number] for number in range(len(texts))]


def _in_threads(texts: list[str]) -> None:
    inputs = {"_sb_inputs": json.dumps(_INPUTS * 3)}
    with ThreadPoolExecutor(2) as threads:
        for result in threads.map(lambda text: sandbox.run_for_text(text, ENDING, inputs, LIMITS), texts):
            assert result.ok, result.error


def _beside_failing(count: int) -> tuple[int, int]:
    """How many good programs got the values that they get in Python, of how many, beside a tenth as many that fail."""
    good = _programs(count, 10**5)
    failing = [_FAILING[number % len(_FAILING)].format(n=number) for number in range(count // 10)]
    with Lab() as lab:
        found = asyncio.run(_evaluated(lab, [*failing, *good]))[len(failing) :]
    right = 0
    for text, evaluation in zip(good, found, strict=True):
        space: dict[str, Any] = {}
        exec(text, space)
        right += list(evaluation.outcomes) == [space["f"](list(x)) for x in _INPUTS]
    return right, len(good)


def _table(rates: dict[str, list[float]]) -> Table:
    lines = [
        [name, f"{statistics.median(found):,.0f}", f"{min(found):,.0f} to {max(found):,.0f}"]
        for name, found in rates.items()
    ]
    return Table(["what", "functions a second, median", "range"], lines)


def _plot(rates: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.barh(list(rates), [statistics.median(found) for found in rates.values()], color="#0072B2")
    axis.axvline(2000, color="#999999", linestyle="--")
    axis.invert_yaxis()
    axis.set_xlabel("functions a second (dashed: the goal)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
