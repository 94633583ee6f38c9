"""Measure one hindsight round: the search's own programs become training rows for the next pack.

Claim: after one round the share of solved test problems is at least 5 points higher, at the same test budget.

MATSIR searches practice problems with the pack `induction`. Its executed programs are harvested: each is the exact
solution of the problem that its own outputs define. The next pack is trained like the first one, on the first one's
rows and the harvested ones. The control is trained for as many steps on the first one's rows alone, so that what the
harvest brings is told apart from what more training brings. All three packs then search the same test problems, which
share no program (by behaviour) with the practice problems or with any generated training row.

What a round brings depends on what the first pack has not seen yet, so there are three starts:

- `like`: practice and test problems are like the 70,000 generated rows of the training; the harvest holds little news
- `deeper`: the same first pack, but practice and test problems have more parts than any program of the training
- `scarce`: the first pack was trained on 6,000 generated rows; practice and test problems are like them

Differences are paired by problem and seed; intervals (95%) come from resampling the problems, with all seeds of a
problem together.

micro: the model of benchmarks.matsir.

    python -m benchmarks.matsir.hindsight                   micro: an hour on two cores, after benchmarks.matsir
    python -m benchmarks.matsir.hindsight --start deeper    one start alone; writes nothing
    python -m benchmarks.matsir.hindsight --quick           a model that knows little
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, positive, run
from benchmarks.matsir.__main__ import MATSIR_SETTINGS, RUNS, bench_of, first_of_each
from benchmarks.matsir.arms import MATSIR, Arm
from benchmarks.matsir.figures import difference, interval
from benchmarks.matsir.micro_skill import (
    BATCH,
    PLAN,
    QUICK,
    SKILL,
    SkillPlan,
    induction_base,
    micro_weave,
    skill_weave,
)
from skillweave.artefact import write_text
from skillweave.base import open_base
from skillweave.progress import console
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.harvest import harvest, write_harvest
from skillweave.reason.induction import write_induction
from skillweave.reason.induction.write import Problems
from skillweave.reason.problem import Problem
from skillweave.reason.readers import load_problems
from skillweave.reason.trace import SearchTrace
from skillweave.report import Table

NAME = "hindsight"
BEFORE, CONTROL, AFTER = "the first pack", "as many more steps on its own rows", "with the harvest"
MORE_PARTS = {"lists": (4, 4), "commands": (6, 7)}
"""Parts of a program in the start `deeper`; the programs of the training have at most 3 and 5."""
_ARM = Arm(MATSIR, "matsir", settings=MATSIR_SETTINGS)

Runs = dict[str, dict[int, list[SearchTrace]]]


@dataclass(frozen=True)
class Start:
    """What the first pack knows, and the problems of the round.

    - ``plan``: how the first pack was made
    - ``deeper``: whether the practice and test problems have more parts than those that it was trained on
    """

    plan: SkillPlan
    deeper: bool = False


STARTS = {
    "like": Start(PLAN),
    "deeper": Start(PLAN, deeper=True),
    "scarce": Start(replace(PLAN, settings=PLAN.settings.model_copy(update={"rows": 6_000}), own=500)),
}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro"])
    parser.add_argument("--seeds", type=positive, default=3, help="seeds of the test searches (default: %(default)s)")
    parser.add_argument("--problems", type=positive, default=60, help="of each family (default: %(default)s)")
    parser.add_argument("--practice", type=positive, default=100, help="of each family (default: %(default)s)")
    parser.add_argument("--calls", type=positive, default=16, help="of each test problem (default: %(default)s)")
    parser.add_argument("--start", choices=STARTS, help="only this start; writes nothing")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _measure(options, argv, Path(folder), {"like": Start(QUICK), "deeper": Start(QUICK, deeper=True)})
        return
    _measure(options, argv, RUNS, {options.start: STARTS[options.start]} if options.start else STARTS)


def _measure(options: argparse.Namespace, argv: Sequence[str], folder: Path, starts: dict[str, Start]) -> None:
    if options.quick:
        options.seeds, options.problems, options.practice = 1, 2, 2
    record = Record.begin(NAME, options, argv, list(range(options.seeds)), module=f"matsir.{NAME}")
    tasks = {name: _round(options, folder, name, start, record) for name, start in starts.items()}
    if options.start:
        for claim in record.claims:
            console.print(f"  {claim}", markup=False)
        return
    record.finish(_table(tasks), _plot(tasks))


def _round(options: argparse.Namespace, folder: Path, name: str, start: Start, record: Record) -> dict[str, np.ndarray]:
    """Run one round from a start: for each pack, whether each test problem is solved, (problems, seeds).

    Its rows and claims are added to ``record``.
    """
    place = folder if start.plan in (PLAN, QUICK) else folder / name
    first = micro_weave(place / "model", start.plan)
    practised, tested = (
        first_of_each(found, count)
        for found, count in zip(_problems(place / "model", start), (options.practice, options.problems), strict=True)
    )
    own = folder / "hindsight" / name
    weaves = _weaves(place / "model", first, own, practised, start, 8 if options.quick else 64)
    tasks = {}
    for pack, weave in weaves.items():
        bench = bench_of(weave, tested, own / "searched" / weave.parent.name, options.calls)
        runs = {seed: bench.run(_ARM, seed)[0] for seed in range(options.seeds)}
        tasks[pack] = np.array([[trace.task for trace in runs[seed]] for seed in sorted(runs)]).T
        record.rows += [
            {
                "start": name,
                "pack": pack,
                "seed": seed,
                "problems": len(traces),
                "task": float(np.mean([trace.task for trace in traces])),
                "raw": float(np.mean([trace.raw for trace in traces])),
                "calls": float(np.mean([trace.calls for trace in traces])),
            }
            for seed, traces in runs.items()
        ]
    record.claims += [
        _claim(name, BEFORE, tasks, "> 5"),
        _claim(name, CONTROL, tasks, "> 0"),
    ]
    return tasks


def _claim(start: str, other: str, tasks: dict[str, np.ndarray], goal: str) -> Claim:
    return difference(f"{start}: task accuracy, {AFTER} less {other}, points", tasks[AFTER], tasks[other], goal)


def _problems(model: Path, start: Start) -> tuple[list[Problem], list[Problem]]:
    """The practice and the test problems of a start."""
    data = model / "data"
    if not start.deeper:
        return load_problems(str(data / "practice.jsonl")), load_problems(str(data / "problems.jsonl"))
    families = {
        name: family.model_copy(update={"test": MORE_PARTS[name]})
        for name, family in start.plan.settings.families.items()
    }
    settings = start.plan.settings.model_copy(update={"families": families, "rows": 1})
    data = model / "deeper"
    if not data.is_dir():
        write_induction(data, settings)
    # A program with more parts may still behave like one with fewer: no such problem is used.
    plan, drawn = start.plan, Problems(settings)
    seen = {problem.behaviour for _, problem in Problems(plan.settings).rows()}
    trained = Problems(plan.settings).training(Random(f"own {plan.settings.seed}"))
    seen |= {problem.behaviour for problem in islice(trained, plan.own)}
    found = []
    for file, problems in (("practice.jsonl", drawn.practice), ("problems.jsonl", drawn.test)):
        loaded = load_problems(str(data / file))
        found.append([one for one, problem in zip(loaded, problems, strict=True) if problem.behaviour not in seen])
        if len(found[-1]) < len(loaded):
            console.print(f"  {file}: {len(loaded) - len(found[-1])} of {len(loaded)} behave like a training program")
    return found[0], found[1]


def _weaves(
    model: Path, first: Path, own: Path, practised: Sequence[Problem], start: Start, calls: int
) -> dict[str, Path]:
    """The weaves of the three packs; those that are there are not made again."""
    rows = model / SKILL / "rows.jsonl"
    traces, _ = bench_of(first, practised, own / "practice", calls).run(_ARM, 0)
    solved = float(np.mean([trace.ended == "solved" for trace in traces]))
    found = harvest(traces, PromptSet.named("induction"))
    console.print(
        f"  {solved:.0%} of the practice problems are solved; harvest: {len(found.rows):,} rows", markup=False
    )
    for line in found.left_out:
        console.print(f"  {line}", markup=False)
    write_harvest(own / "harvest.jsonl", found)
    both = rows.read_text(encoding="utf-8") + (own / "harvest.jsonl").read_text(encoding="utf-8")
    write_text(own / "both.jsonl", both)
    steps = -(-len(both.splitlines()) // BATCH)
    base = open_base(induction_base(start.plan), dtype="float32")
    made = {BEFORE: first}
    for name, file, place in ((CONTROL, rows, "control"), (AFTER, own / "both.jsonl", "after")):
        made[name] = skill_weave(own / place / "weave", base, file, own / place / "run", start.plan, steps)
    return made


def _table(tasks: dict[str, dict[str, np.ndarray]]) -> Table:
    rows = []
    for start, packs in tasks.items():
        for name, values in packs.items():
            mean, low, high = interval(values)
            rows.append([start, name, str(len(values)), f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"])
    return Table(["start", "pack", "problems", "problems with all test pairs right, %"], rows)


def _plot(tasks: dict[str, dict[str, np.ndarray]]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bars = [(f"{start}: {name}", interval(values)) for start, own in tasks.items() for name, values in own.items()]
    places, means = range(len(bars)), [100 * mean for _, (mean, _, _) in bars]
    axes.barh(places, means, color=["#b9c4c9", "#7fa8b8", "#2a7f9e"] * len(tasks))
    errors = [
        [100 * (mean - low) for _, (mean, low, _) in bars],
        [100 * (high - mean) for _, (mean, _, high) in bars],
    ]
    axes.errorbar(means, places, xerr=errors, fmt="none", ecolor="#333333", capsize=3)
    axes.set_yticks(list(places), [label for label, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("problems with all test pairs right, %")
    return figure


if __name__ == "__main__":
    run(main)
