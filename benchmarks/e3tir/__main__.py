"""Compare E3-TIR with RL alone, supervised training, both in turn, and E3-TIR without each of its parts.

Claims: at equal tokens written by the policy, E3-TIR is ahead of Zero-RL, and of SFT -> RL with ten times its expert
traces, on two families of tasks. It is worse without branching, without detaching, or with the plain sum of both
losses.

micro: one micro model is trained from scratch on conversations of wanderers. They call the tools in the right form,
take the right step now and then, and mostly a wrong one. So the model knows the syntax and not the policy. Every seed
has new tasks (hops: another world of people; steps: other expressions). Every arm trains until its policy has written
the same number of tokens. Tokens that an expert wrote are counted separately. Scores are of greedy answers to 200 test
prompts (hops: about people who begin no training question). "On the way" is the mean over the budget of the score on
100 held-out prompts. A third world is a control: hops again, but 60% of the experts' answers come one search too early,
so that imitation alone leads to wrong answers. Intervals are Student's t over seeds, of differences within a seed.

ROI [ours; the paper gives no formula]: (score / that of SFT -> RL) * (tokens of SFT -> RL) / (own tokens), where tokens
are those that the expert and the policy wrote.

small: SmolLM2, trained in full, on arithmetic in steps with a calculator. The arms are Zero-RL, supervised training,
and E3-TIR after a few supervised steps (without them it never calls a tool), at about equal wall time.

Finished runs are kept in runs/bench, so that a stopped benchmark resumes. Delete that folder after a change of the
code.

    python -m benchmarks.e3tir                        micro: an hour on two cores
    python -m benchmarks.e3tir --scale small          SmolLM2: three quarters of an hour on two cores
    python -m benchmarks.e3tir --quick                a base that knows little, two arms
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.record import Claim, Record, arguments, judged, positive, run, student
from benchmarks.common.runs import run_all
from benchmarks.e3tir.arms import (
    ARMS,
    E3,
    FAMILIES,
    HASTY,
    HOPS,
    LESS,
    LUFFY,
    SFT,
    SFT_RL,
    SFT_RL_FEW,
    STEPS,
    ZERO,
    Plan,
    agent_base,
    trained,
)
from benchmarks.e3tir.show import plot, table

NAME = "e3tir"
RUNS = Path("runs/bench/e3tir-micro")
MAIN = (ZERO, SFT, SFT_RL, SFT_RL_FEW, LUFFY, E3)
FAMILY_ARMS = {
    HOPS: tuple(ARMS),
    STEPS: MAIN,
    HASTY: (SFT, SFT_RL, SFT_RL_FEW, E3, "no filter", "sum of SFT and RL losses"),
}
"""Family -> its arms. The ablation runs on hops alone; arms without experts are the same with hasty experts."""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro", "small"])
    parser.add_argument("--seeds", type=positive, help="seeds (default: 5, small: 1)")
    parser.add_argument("--jobs", type=positive, default=2, help="runs at once (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _quick(options, argv, Path(folder))
        return
    if options.scale == "small":
        import _agents_small as small

        small.main(options, argv, RUNS.with_name("e3tir-small"))
        return
    record = Record.begin(NAME, options, argv, range(1, 1 + (options.seeds or 5)))
    agent_base(Plan(E3, HOPS, 0).base_steps)  # made once, before several processes need it
    plans = arm_plans(record.seeds)
    record.rows = rows(plans, run_all(plans, trained, RUNS, jobs=options.jobs))
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows), sum(row["seconds"] for row in record.rows) / options.jobs)


def _quick(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    record = Record.begin(NAME, options, argv, [1, 2])
    plans = [Plan(arm, HOPS, seed, budget=2000, traces=4, base_steps=20) for arm in (ZERO, E3) for seed in record.seeds]
    record.rows = rows(plans, run_all(plans, trained, kept, jobs=1))
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows))


def arm_plans(seeds: Sequence[int]) -> list[Plan]:
    """A plan for every arm on each of its families."""
    return [Plan(arm, family, seed) for family, arms in FAMILY_ARMS.items() for arm in arms for seed in seeds]


def rows(plans: Sequence[Plan], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the result."""
    return [{**asdict(plan), **result} for plan, result in zip(plans, results, strict=True)]


def claims(found: Sequence[dict[str, Any]]) -> list[Claim]:
    """Claims: E3-TIR against the other arms and itself without each part, at the end and on the way, in points."""
    made = []
    for family in FAMILIES:
        for other in (ZERO, SFT_RL, SFT_RL_FEW, SFT, LUFFY, *LESS):
            for name, key in (("score", "score"), ("mean on the way", "mean_on_the_way")):
                values = differences(found, family, other, key)
                if values:
                    made.append(judged(f"{family}: {name}, {E3} less {other}, points", *student(values), "> 0"))
    return made


def differences(found: Sequence[dict[str, Any]], family: str, other: str, key: str) -> list[float]:
    """The points by which E3-TIR is ahead of another arm, for each seed."""
    of = {
        arm: {row["seed"]: 100 * row[key] for row in found if (row["family"], row["arm"]) == (family, arm)}
        for arm in (E3, other)
    }
    return [of[E3][seed] - of[other][seed] for seed in sorted(of[E3].keys() & of[other].keys())]


if __name__ == "__main__":
    run(main)
