"""Self-play from a converged start on SmolLM2: sums of four numbers in worked steps, in varying order and wording.

The library's own ``tpaw`` runs every arm, so a stopped run resumes in the middle of a round. A round trains on as many
sequences in every arm, as in :mod:`~benchmarks.tpaw.converged`; its schedule ends with the round. The verifier reads
the last number of an answer, so all orders and wordings are right.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.common.record import Claim, Record, judged, student
from benchmarks.common.runs import as_far_as_measured
from benchmarks.tpaw.arms import ARMS, DPO, SFT, SPIN, TPAW, curves, equal_steps, plot, table
from benchmarks.tpaw.converged_show import a_point_ahead, below_its_best, gained, half_a_point_below, paired, points
from skillweave.artefact import write_json_lines
from skillweave.base import open_base
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.tpaw import TpawConfig

BASE = "bundled:smollm2"
PAIRS = 240
HELD_OUT = 200
SHORTER, EPOCHS, LONGER = 5, 10, 20
"""Lengths of the supervised training. The play begins from the second, and at the first rate from the third, too."""
RATE = 5e-5
SHARES = (1 / 20, 1 / 5)
"""The learning rates of the play as shares of :data:`RATE`: a published one, and one that is too high for SPIN."""
LAM = 0.1
ROUNDS = 4
STEPS = 15
BATCH = 16
FIT = {"micro_batch_size": 4}
"""What keeps memory small; it changes no result."""
MAY_RISE = 2.0
"""So many points may a longer supervised training add to the score, and it has converged."""
WORDINGS = (
    ("{one} + {other} = {total}", ", ", "{steps}. The sum is {sum}."),
    ("{one} plus {other} makes {total}", "; ", "{steps}. Together: {sum}."),
    ("add {other} to {one} and get {total}", ", then ", "First {steps}. So it is {sum}."),
)


@dataclass(frozen=True)
class Start:
    """A plan: supervised training of so many epochs."""

    seed: int
    epochs: int


@dataclass(frozen=True)
class Play:
    """A plan: the rounds of an arm from the start of a seed, at a share of the start's rate."""

    arm: str
    share: float
    seed: int
    epochs: int = EPOCHS

    @property
    def comparison(self) -> str:
        """What the rows of this learning rate and this start are called."""
        after = "" if self.epochs == EPOCHS else f", after {self.epochs} epochs"
        return f"1/{1 / self.share:.0f} of the start's rate{after}"


def main(options: argparse.Namespace, argv: Sequence[str], kept: Path) -> None:
    """Run the small scale, or show what there is of it; ``kept`` holds the models and the finished runs."""
    record = Record.begin("tpaw-converged", options, argv, range(options.seeds or 1), module="tpaw.converged")
    seeds, (first, second) = record.seeds, SHARES
    plans: list[Start | Play] = [
        *(Start(seed, epochs) for seed in seeds for epochs in (EPOCHS, SHORTER)),
        *(Play(arm, first, seed) for seed in seeds for arm in (SPIN, TPAW, SFT, DPO)),
        *(Start(seed, LONGER) for seed in seeds),
        *(Play(arm, first, seed, LONGER) for seed in seeds for arm in (SFT, TPAW, SPIN)),
        *(Play(arm, second, seed) for seed in seeds for arm in (SPIN, TPAW, SFT, DPO)),
    ]
    record.rows = as_far_as_measured(plans, functools.partial(measure, kept=kept), kept, show=options.show)
    played = [row for row in record.rows if row["arm"] in ARMS]
    record.claims = claims(record.rows)
    record.finish(table(played), plot(played), sum(row["seconds"] for row in record.rows))


def measure(plan: Start | Play, kept: Path) -> dict[str, Any]:
    """Return the row of a plan."""
    if isinstance(plan, Start):
        settings = {
            "loss": "sft",
            "rounds": 1,
            "training": {"epochs": plan.epochs, "batch_size": BATCH, "learning_rate": RATE, **FIT},
        }
        return {"arm": None, "epochs": plan.epochs, **_run(plan.seed, settings, _start_folder(plan, kept), kept)}
    rate = RATE * plan.share
    settings = {
        **ARMS[plan.arm],
        "start": str(_start_folder(Start(plan.seed, plan.epochs), kept) / "delta"),
        "rounds": ROUNDS,
        "lam": LAM,
        "training": {"steps": equal_steps(plan.arm, STEPS), "batch_size": BATCH, "learning_rate": rate, **FIT},
    }
    folder = kept / f"play-{plan.seed}-{plan.arm.replace(' ', '-')}-{rate:g}-{plan.epochs}"
    common = {"task": "sums", "comparison": plan.comparison, "learning_rate": rate, "lam": LAM}
    return {**common, "arm": plan.arm, **_run(plan.seed, settings, folder, kept)}


def _start_folder(plan: Start, kept: Path) -> Path:
    return kept / f"start-{plan.seed}-{plan.epochs}"


def _run(seed: int, settings: dict[str, Any], folder: Path, kept: Path) -> dict[str, Any]:
    """Return the curves of a run of ``tpaw`` in ``folder``."""
    task = {
        "source": "file",
        "path": str(task_file(kept, seed)),
        "verifier": "numeric",
        "options": {"answer_at": "last"},
        "splits": {"train": PAIRS, "calibration": HELD_OUT, "test": 1},
    }
    common = {"task": task, "seed": seed, "keep": "last", "patience": None, "held_out": HELD_OUT, "max_new_tokens": 80}
    config = TpawConfig.model_validate({**common, **settings})
    get_method("tpaw").run(open_base(BASE, device="cpu"), config, folder)
    return {"seed": seed, **curves(read_json(folder / "figures.json")["stages"])}


def task_file(kept: Path, seed: int) -> Path:
    """Return the file with the prompts and answers of a seed, which is written if it is not there."""
    file = kept / f"sums-{seed}.jsonl"
    if not file.exists():
        rng, answers = Random(f"sums {seed}"), {}
        while len(answers) < PAIRS + HELD_OUT + 1:
            numbers = [rng.randrange(2, 100) for _ in range(4)]
            answers[f"Add {', '.join(map(str, numbers))}. Show each step."] = worked(rng, numbers)
        write_json_lines(file, ({"prompt": prompt, "answer": answer} for prompt, answer in answers.items()))
    return file


def worked(rng: Random, numbers: Sequence[int]) -> str:
    """Return one of the right answers: the numbers in a random order, in one of three wordings."""
    step, between, whole = rng.choice(WORDINGS)
    total, *rest = rng.sample(list(numbers), len(numbers))
    steps = []
    for number in rest:
        steps.append(step.format(one=total, other=number, total=total + number))
        total += number
    return whole.format(steps=between.join(steps), sum=total)


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return the claims for which there are rows. With one seed an interval is open, and no such claim holds."""
    found = []
    for longer, shorter in ((EPOCHS, SHORTER), (LONGER, EPOCHS)):
        values = paired(*([row for row in rows if row.get("epochs") == epochs] for epochs in (longer, shorter)), points)
        if values:
            name = f"supervised training: points of {longer} epochs less those of {shorter}"
            found.append(judged(name, *student(values), f"<= {MAY_RISE:g}"))
    for name in dict.fromkeys(row["comparison"] for row in rows if row["arm"] in ARMS):
        arms = {arm: [row for row in rows if (row["arm"], row.get("comparison")) == (arm, name)] for arm in ARMS}
        if values := paired(arms[TPAW], arms[SPIN], points):
            found.append(a_point_ahead(f"{name}: TPAW's last score less SPIN's, points", values))
        for other in (SFT, DPO):
            if values := paired(arms[TPAW], arms[other], points):
                found.append(judged(f"{name}: TPAW's last score less that of {other}, points", *student(values), "> 0"))
        for arm, goal in ((TPAW, ">= 0"), (SPIN, "< 0")):
            if mine := arms[arm]:
                nats = student([gained(row, "log_prob") for row in mine])
                found.append(judged(f"{name}: {arm}: log-probability of held-out targets, nats gained", *nats, goal))
                found.append(half_a_point_below(f"{name}: {arm}: best score less last, points", below_its_best(mine)))
    return found
