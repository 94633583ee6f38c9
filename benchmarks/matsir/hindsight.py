"""Measure one hindsight round: the search's own programs become training rows for the next pack.

Claim: after one round the share of solved test problems is at least 5 points higher, at the same test budget.

MATSIR searches practice problems with the pack `induction`. Its executed programs are harvested: each is the exact
solution of the problem that its own outputs define. The next pack is trained like the first one, on the first one's
rows and the harvested ones. The control is trained for as many steps on the first one's rows alone, so that what the
harvest brings is told apart from what more training brings. All three packs then search the same test problems, which
share no program (by behaviour) with the practice problems or with any generated training row.

Differences are paired by problem and seed; intervals (95%) come from resampling the problems, with all seeds of a
problem together.

micro: the model of benchmarks.matsir.

    python -m benchmarks.matsir.hindsight             micro: half an hour on two cores, after benchmarks.matsir
    python -m benchmarks.matsir.hindsight --quick     a model that knows little
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.matsir.__main__ import MATSIR_SETTINGS, RUNS, bench_of, first_of_each
from benchmarks.matsir.arms import MATSIR, Arm
from benchmarks.matsir.figures import difference, interval
from benchmarks.matsir.micro_skill import BATCH, PLAN, QUICK, SKILL, induction_base, micro_weave, skill_weave
from skillweave.artefact import write_text
from skillweave.base import open_base
from skillweave.progress import console
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.harvest import harvest, write_harvest
from skillweave.reason.readers import load_problems
from skillweave.reason.trace import SearchTrace
from skillweave.report import Table

NAME = "hindsight"
BEFORE, CONTROL, AFTER = "the first pack", "as many more steps on its own rows", "with the harvest"
_ARM = Arm(MATSIR, "matsir", settings=MATSIR_SETTINGS)

Runs = dict[str, dict[int, list[SearchTrace]]]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro"])
    parser.add_argument("--seeds", type=positive, default=3, help="seeds of the test searches (default: %(default)s)")
    parser.add_argument("--problems", type=positive, default=30, help="of each family (default: %(default)s)")
    parser.add_argument("--practice", type=positive, default=100, help="of each family (default: %(default)s)")
    parser.add_argument("--calls", type=positive, default=16, help="of each test problem (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _measure(options, argv, Path(folder), seeds=1, problems=2, practice=2)
    else:
        _measure(options, argv, RUNS, options.seeds, options.problems, options.practice)


def _measure(
    options: argparse.Namespace, argv: Sequence[str], folder: Path, seeds: int, problems: int, practice: int
) -> None:
    record = Record.begin(NAME, options, argv, list(range(seeds)))
    record.command = record.command.replace(f"benchmarks.{NAME}", f"benchmarks.matsir.{NAME}")
    weaves = _weaves(folder, practice, quick=options.quick)
    tested = first_of_each(load_problems(str(folder / "model" / "data" / "problems.jsonl")), problems)
    runs: Runs = {}
    for name, weave in weaves.items():
        bench = bench_of(weave, tested, folder / f"hindsight-{list(weaves).index(name)}", options.calls)
        runs[name] = {seed: bench.run(_ARM, seed)[0] for seed in range(seeds)}
    tasks = {name: _tasks(own) for name, own in runs.items()}
    record.rows = [
        {
            "pack": name,
            "seed": seed,
            "task": float(np.mean([trace.task for trace in traces])),
            "raw": float(np.mean([trace.raw for trace in traces])),
            "calls": float(np.mean([trace.calls for trace in traces])),
        }
        for name, own in runs.items()
        for seed, traces in own.items()
    ]
    record.claims = [
        difference(f"task accuracy, {AFTER} less {BEFORE}, points", tasks[AFTER], tasks[BEFORE], "> 5"),
        difference(f"task accuracy, {AFTER} less {CONTROL}, points", tasks[AFTER], tasks[CONTROL], "> 0"),
    ]
    record.finish(_table(tasks), _plot(tasks))


def _weaves(folder: Path, practice: int, *, quick: bool) -> dict[str, Path]:
    """The weaves of the three packs; those that are there are not made again."""
    plan = QUICK if quick else PLAN
    first = micro_weave(folder / "model", plan)
    data, own = folder / "model" / "data", folder / "model" / SKILL / "rows.jsonl"
    practised = first_of_each(load_problems(str(data / "practice.jsonl")), practice)
    traces, _ = bench_of(first, practised, folder / "practice", 8 if quick else 64).run(_ARM, 0)
    found = harvest(traces, PromptSet.named("induction"))
    console.print(f"  harvest: {len(found.rows):,} rows", markup=False)
    for line in found.left_out:
        console.print(f"  {line}", markup=False)
    rows = folder / "model" / "harvest"
    write_harvest(rows / "harvest.jsonl", found)
    both = own.read_text(encoding="utf-8") + (rows / "harvest.jsonl").read_text(encoding="utf-8")
    write_text(rows / "both.jsonl", both)
    steps = -(-len(both.splitlines()) // BATCH)
    base = open_base(induction_base(plan), dtype="float32")
    made = {BEFORE: first}
    for name, file, place in ((CONTROL, own, "control"), (AFTER, rows / "both.jsonl", "after")):
        made[name] = skill_weave(rows / place / "weave", base, file, rows / place / "run", plan, steps)
    return made


def _tasks(own: dict[int, list[SearchTrace]]) -> np.ndarray:
    """Whether each problem is solved; shape (problems, seeds)."""
    return np.array([[trace.task for trace in own[seed]] for seed in sorted(own)]).T


def _table(tasks: dict[str, np.ndarray]) -> Table:
    rows = []
    for name, values in tasks.items():
        mean, low, high = interval(values)
        rows.append([name, f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"])
    return Table(["pack", "problems with all test pairs right, %"], rows)


def _plot(tasks: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(6, 2.5), layout="constrained")
    axes = figure.subplots()
    means = [interval(values) for values in tasks.values()]
    places = range(len(means))
    axes.barh(places, [100 * mean for mean, _, _ in means], color="#2a7f9e")
    errors = [[100 * (mean - low) for mean, low, _ in means], [100 * (high - mean) for mean, _, high in means]]
    axes.errorbar([100 * mean for mean, _, _ in means], places, xerr=errors, fmt="none", ecolor="#333333", capsize=3)
    axes.set_yticks(list(places), list(tasks))
    axes.invert_yaxis()
    axes.set_xlabel("problems with all test pairs right, %")
    return figure


if __name__ == "__main__":
    run(main)
