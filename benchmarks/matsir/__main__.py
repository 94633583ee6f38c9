"""Compare MATSIR with direct answers, best of N, iterative refinement, direct Python, concepts and REx.

Claims: within 64 calls, the area under MATSIR's curve of accuracy against calls is at least 3 points above REx's, at
least 5 above that of best of N programs, and above those of iterative refinement and direct Python (N=5, T=3).

All arms have the same model (the pack `induction`), the same problems, sandbox, temperature, number of expansions in
flight, and the same limits of calls and tokens for each problem; a call is one completion. A method whose protocol ends
earlier starts again and keeps its best. "Task" is the share of problems whose test pairs are all right, "raw" the share
of test pairs. The area is the mean of the task accuracy over 1 to 64 calls, or over the tokens up to the limit.
Differences are between means over problems and seeds; intervals (95%) come from resampling the problems, with all seeds
of a problem together. The settings of MATSIR and REx were chosen on practice problems, with a seed of their own
(--tune).

The problems are of two families: `lists` (a chain of two or three steps) and `commands` (MiniSCAN-like: invented words
that write colours or change what was written; the test inputs are longer than the training inputs).

micro: a Llama of 2M parameters, trained from scratch on generated rows; then `specialise` on its own failures makes the
delta that is zipped into the pack. No program of a training row behaves like that of a test problem.

    python -m benchmarks.matsir                   micro: an hour and a half on two cores, the model included
    python -m benchmarks.matsir --tune            the choice of the settings, on practice problems
    python -m benchmarks.matsir --quick           two problems of each family, a model that knows little

Answers are kept in runs/bench, so that a stopped benchmark resumes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, positive, run
from benchmarks.matsir.arms import (
    BEST_OF_N,
    IO,
    MATSIR,
    PYTHON,
    REFINEMENT,
    REX,
    RULES,
    VOTE,
    Arm,
    Bench,
    arms,
)
from benchmarks.matsir.figures import CALLS, areas, curve, difference, interval, task_at
from benchmarks.matsir.micro_skill import PLAN, QUICK, SKILL, micro_weave
from skillweave.progress import console
from skillweave.reason.budget import Budget
from skillweave.reason.problem import Problem
from skillweave.reason.readers import load_problems
from skillweave.reason.trace import SearchTrace
from skillweave.report import Table
from skillweave.weave import Weave

NAME = "matsir"
RUNS = Path("runs/bench/matsir")
MATSIR_SETTINGS: dict[str, Any] = {"judge": False}
"""The defaults were best in `--tune`. The judge is off, because the model was not trained for it."""
TUNING_SEED = 100
MOST_CALLS = 64
MOST_TOKENS = 8000

Runs = dict[str, dict[int, list[SearchTrace]]]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro"])
    parser.add_argument("--seeds", type=positive, default=3, help="seeds of the searches (default: %(default)s)")
    parser.add_argument("--problems", type=positive, default=30, help="of each family (default: %(default)s)")
    parser.add_argument("--tune", action="store_true", help="choose the settings on practice problems; writes nothing")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _compare(options, argv, Path(folder), 1, 2, MOST_CALLS // 8)
        return
    if options.tune:
        _tune(RUNS, options.problems)
        return
    _compare(options, argv, RUNS, options.seeds, options.problems, MOST_CALLS)


def _compare(options: Any, argv: Sequence[str], folder: Path, seeds: int, count: int, calls: int) -> None:
    record = Record.begin(NAME, options, argv, list(range(seeds)))
    weave = micro_weave(folder / "model", QUICK if options.quick else PLAN)
    problems = first_of_each(load_problems(str(folder / "model" / "data" / "problems.jsonl")), count)
    bench = bench_of(weave, problems, folder, calls)
    runs: Runs = {}
    for arm in arms(MATSIR_SETTINGS):
        runs[arm.name] = {}
        for seed in range(seeds):
            traces, counters = bench.run(arm, seed)
            runs[arm.name][seed] = traces
            if counters.batches:
                console.print(f"  {arm.name}, seed {seed}: batches {counters.fill:.0%} full", markup=False)
    record.rows = [_row(name, seed, traces, calls) for name, own in runs.items() for seed, traces in own.items()]
    record.claims = _claims(runs, calls)
    record.finish(_table(runs, calls), _plot(runs, calls))


def bench_of(weave: Path, problems: Sequence[Problem], folder: Path, calls: int) -> Bench:
    return Bench(
        Weave.from_pretrained(weave),
        SKILL,
        problems,
        Budget(calls=calls, tokens=MOST_TOKENS),
        folder / "runs",
        batch_size=128,
        max_tokens=48,
    )


def first_of_each(problems: Sequence[Problem], count: int) -> list[Problem]:
    """The first problems of each family."""
    families = dict.fromkeys(problem.examples.family for problem in problems)
    return [
        problem for family in families for problem in [one for one in problems if one.examples.family == family][:count]
    ]


def _tune(folder: Path, count: int) -> None:
    """Print the areas of candidate settings on practice problems."""
    weave = micro_weave(folder / "model")
    problems = first_of_each(load_problems(str(folder / "model" / "data" / "practice.jsonl")), count)
    bench = bench_of(weave, problems, folder / "tuning", MOST_CALLS)
    candidates = [
        Arm(BEST_OF_N, "best-of-n"),
        *(Arm(f"REx C={c}", "rex", settings={"heuristic": c}) for c in (5.0, 20.0)),
    ]
    candidates += [
        Arm(f"MATSIR {more}", "matsir", settings=MATSIR_SETTINGS | more)
        for more in (
            {"critic": False},
            {"critic": False, "tell": "always"},
            {"critic": False, "exploration": 0.3},
            {"critic": False, "best_share": 1.0},
            {"critic": False, "patience": 8},
            {"critic": True},
            {"critic": True, "critic_after": 2},
        )
    ]
    for arm in candidates:
        traces, _ = bench.run(arm, TUNING_SEED)
        area = areas({0: traces}, MOST_CALLS)
        task = np.mean([trace.task for trace in traces])
        console.print(f"  {arm.name}: area {100 * area.mean():.1f}, task {100 * task:.1f}", markup=False)


def _row(name: str, seed: int, traces: Sequence[SearchTrace], calls: int) -> dict[str, Any]:
    families = sorted({trace.family for trace in traces})
    return {
        "arm": name,
        "seed": seed,
        "raw": _mean([trace.raw for trace in traces]),
        "task": _mean([trace.task for trace in traces]),
        "solved": _mean([float(trace.ended == "solved") for trace in traces]),
        "area": float(areas({0: traces}, calls).mean()),
        "area_tokens": float(areas({0: traces}, MOST_TOKENS, of="tokens").mean()),
        "calls": _mean([trace.calls for trace in traces]),
        "tokens": _mean([trace.tokens for trace in traces]),
        **{f"task at {at}": _mean([task_at(trace, at) for trace in traces]) for at in CALLS if at <= calls},
        **{f"task, {one}": _mean([trace.task for trace in traces if trace.family == one]) for one in families},
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _claims(runs: Runs, calls: int) -> list[Claim]:
    """The goals at equal calls, the same differences at equal tokens, and each part's worth."""
    own = areas(runs[MATSIR], calls)
    own_tokens = areas(runs[MATSIR], MOST_TOKENS, of="tokens")
    goals = {REX: "> 3", BEST_OF_N: "> 5", RULES: "> 5", REFINEMENT: "> 0", PYTHON: "> 0", IO: "> 0", VOTE: "> 0"}
    claims = []
    for name, goal in goals.items():
        claims.append(
            difference(f"area against calls, MATSIR less {name}, points", own, areas(runs[name], calls), goal)
        )
        other = areas(runs[name], MOST_TOKENS, of="tokens")
        claims.append(difference(f"area against tokens, MATSIR less {name}, points", own_tokens, other, goal))
    for name in runs:
        if name.startswith(f"{MATSIR} "):
            claims.append(
                difference(f"area against calls, MATSIR less {name}, points", own, areas(runs[name], calls), "> 0")
            )
    return claims


def _table(runs: Runs, calls: int) -> Table:
    """One line for each arm: means over problems and seeds, with the interval of the area."""
    rows = []
    for name, own in runs.items():
        traces = [trace for seed in own.values() for trace in seed]
        mean, low, high = interval(areas(own, calls))
        rows.append(
            [
                name,
                f"{100 * _mean([trace.raw for trace in traces]):.1f}",
                f"{100 * _mean([trace.task for trace in traces]):.1f}",
                f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                *(f"{100 * _mean([task_at(trace, at) for trace in traces]):.0f}" for at in CALLS if at <= calls),
                f"{_mean([trace.tokens for trace in traces]):,.0f}",
            ]
        )
    return Table(["arm", "raw", "task", "area", *(f"at {at}" for at in CALLS if at <= calls), "tokens"], rows)


def _plot(runs: Runs, calls: int) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    limits = range(1, calls + 1)
    for name, own in runs.items():
        if name.startswith(f"{MATSIR} "):
            continue
        mean = np.mean([curve(trace, limits) for seed in own.values() for trace in seed], axis=0)
        axes.plot(limits, 100 * mean, label=name, linewidth=2.5 if name == MATSIR else 1.2)
    axes.set_xlabel("calls")
    axes.set_ylabel("problems with all test pairs right, %")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    run(main)
