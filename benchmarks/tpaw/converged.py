"""Compare self-play with its relatives from a converged start, where supervised training has nothing left to give.

Claims: after five rounds TPAW is at least one point ahead of SPIN, has not fallen more than half a point below its own
best round, and its targets are no less likely than at the start, while SPIN's are.

The task (:mod:`~benchmarks.tpaw.worked`) has answers with many right forms, and a verifier that accepts all of them. A
micro model of 0.1M parameters first reads many answers of which a part is wrong in a systematic way, as a base has read
the web. Then it is trained on 300 clean pairs with an annealed learning rate, beyond the point where the held-out
score stops rising. From there every arm plays five rounds (0 to 4) on the same pairs. In each round every arm trains on
1200 sequences (SPIN and TPAW: 15 steps of 40 pairs) and draws two answers a prompt at temperature 1. The schedule of a
round is three times as long as the round.

- Main: each arm at its best learning rate of four (1/80 to 1/10 of the start's), chosen by the last score on two seeds
  of their own. TPAW without a part uses TPAW's rate. All have lam 0.1. SFT on four times the pairs is the upper bar.
- Data quality: four arms at the same rates, but a fifth of the answers, on which the start was trained too, has a wrong
  sum.
- Rates: four arms at six rates up to 1/2.5 of the start's, on three seeds, and at the four lower ones on the two
  seeds of the tuning, too: at a given rate nothing was chosen.
- Fresh seeds: at the published rates TPAW was ahead of SPIN with intervals that just touched zero. So both play there
  again on twelve seeds of their own, which count apart.

Scores are those of greedy answers to 800 unseen prompts. Intervals are Student's t over seeds; each seed has a base, a
data set and draws of its own.

small: SmolLM2, sums of four numbers in worked steps (:mod:`~benchmarks.tpaw.converged_small`): four arms, four rounds,
two learning rates that are not tuned. Three arms also play from a start of twice the length.

Finished cells are kept in the folder of ``--runs``, so that a stopped benchmark resumes.
Delete that folder after a change of the code.

    python -m benchmarks.tpaw.converged                  about twenty minutes of one core
    python -m benchmarks.tpaw.converged --scale small    SmolLM2: hours on a core
    python -m benchmarks.tpaw.converged --show           what was measured so far
    python -m benchmarks.tpaw.converged --quick          tiny models, three arms, two rounds
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.common.runs import as_far_as_measured, run_all
from benchmarks.tpaw import converged_small
from benchmarks.tpaw.arms import ARMS, CUT, REJECTION, SETTINGS, SPIN, TPAW, last
from benchmarks.tpaw.converged_show import BY_RATE, PUBLISHED, claims, plot, table
from benchmarks.tpaw.rounds import Data, play, score, supervised
from benchmarks.tpaw.worked import Misled, draw, new_model, worked, wrong
from skillweave.artefact import atomic_file
from skillweave.errors import UserError

NAME = "tpaw-converged"
COMMAND = "tpaw.converged"
RUNS = Path("runs/tpaw-converged")
TUNING_SEEDS = (100, 101)
LAM = 0.1
RATE = 1e-3
"""The learning rate of the start's supervised training."""
SHARES = (1 / 80, 1 / 40, 1 / 20, 1 / 10, 1 / 5, 1 / 2.5)
"""The learning rates of the play as shares of :data:`RATE`."""
GRID = SHARES[:4]
"""Those that an arm's rate is chosen from."""
TUNED = (*ARMS, REJECTION)
RATE_SEEDS = 3
FRESH_SEEDS = range(200, 212)
BAD = 0.2


@dataclass(frozen=True)
class Sizes:
    """How much of everything. ``start`` counts steps of 30 pairs, ``curve`` other lengths that are shown beside it."""

    base: int = 800
    pairs: int = 300
    held_out: int = 800
    start: int = 100
    curve: tuple[int, ...] = (25, 50, 200)
    rounds: int = 5
    steps: int = 15


QUICK = Sizes(base=4, pairs=20, held_out=10, start=2, curve=(1,), rounds=2, steps=1)


@dataclass(frozen=True)
class Plan:
    """One cell: an arm that plays from the start of a seed; with ``arm`` None, how that start came about."""

    arm: str | None
    rate: float
    seed: int
    bad: float = 0.0
    sizes: Sizes = Sizes()


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro", "small"])
    parser.add_argument("--seeds", type=positive, help="seeds that count (default: 5, small: 1)")
    parser.add_argument("--jobs", type=positive, default=1, help="cells at once (default: %(default)s)")
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="FOLDER", help="where cells are kept (default: %(default)s)"
    )
    parser.add_argument("--show", action="store_true", help="run nothing; show the cells that were measured")
    options = parser.parse_args(argv)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _measure(options, argv, Path(folder))
    elif options.scale == "small":
        converged_small.main(options, argv, options.runs / "small")
    else:
        _measure(options, argv, options.runs)


def _measure(options: argparse.Namespace, argv: Sequence[str], folder: Path) -> None:
    seeds = range(2 if options.quick else options.seeds or 5)
    record = Record.begin(NAME, options, argv, seeds, module=COMMAND)
    grid = [] if options.quick else grid_plans()
    tried = cells(grid, folder, options) if grid else []
    if grid and len(tried) < len(grid):
        raise UserError(
            f"the learning rates are not tuned yet: run `python -m benchmarks.{COMMAND}` without --show first"
        )
    rates = {arm: chosen(tried, arm) for arm in TUNED} if tried else dict.fromkeys(TUNED, RATE / 10)
    rows = cells(quick_plans() if options.quick else plans(rates, seeds), folder, options)
    for row in rows:
        row["fresh"] = row["seed"] in FRESH_SEEDS
        at_its_rate = row["arm"] is not None and row["rate"] == rates[TPAW if row["arm"] in CUT else row["arm"]]
        row["tuned"] = at_its_rate and not row["fresh"]
    record.rows = [*rows, *({**row, "tuned": False, "fresh": False} for row in tried)]
    record.claims = claims(record.rows)
    shown = table(record.rows), plot(record.rows)
    record.finish(*shown, sum(row["seconds"] for row in record.rows))


def cells(wanted: Sequence[Plan], folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the plans, each made once; with ``--show`` only of those that were made."""
    work = functools.partial(cell, folder=folder)
    if options.show:
        return as_far_as_measured(wanted, work, folder, show=True)
    return run_all(wanted, work, folder, jobs=options.jobs)


def grid_plans() -> list[Plan]:
    """Every learning rate of every tuned arm, on the tuning seeds."""
    return [Plan(arm, RATE * share, seed) for seed in TUNING_SEEDS for arm in TUNED for share in GRID]


def chosen(tried: Sequence[dict[str, Any]], arm: str) -> float:
    """The learning rate with the best mean last score on the tuning seeds."""
    scores: dict[float, list[float]] = {}
    for row in tried:
        if row["arm"] == arm:
            scores.setdefault(row["rate"], []).append(last(row))
    return max(scores, key=lambda rate: fmean(scores[rate]))


def plans(rates: dict[str, float], seeds: Sequence[int]) -> list[Plan]:
    """All cells that count: starts, tuned arms, tuned arms on data of which a part is wrong, and all rates."""
    found = [
        plan
        for seed in seeds
        for plan in (
            Plan(None, RATE, seed),
            *(Plan(arm, rates[TPAW if arm in CUT else arm], seed) for arm in SETTINGS),
        )
    ]
    ladder = {
        share: [Plan(arm, RATE * share, seed) for seed in seeds[:RATE_SEEDS] for arm in BY_RATE] for share in SHARES
    }
    found += [plan for share in PUBLISHED for plan in ladder[share]]
    found += [Plan(arm, rates[arm], seed, BAD) for seed in seeds for arm in BY_RATE]
    found += [plan for share in SHARES for plan in ladder[share]]
    found += [Plan(arm, RATE * share, seed) for seed in FRESH_SEEDS for share in PUBLISHED for arm in (SPIN, TPAW)]
    return list(dict.fromkeys(found))


def quick_plans() -> list[Plan]:
    """A few tiny cells on the same path."""
    arms = (None, SPIN, TPAW, REJECTION)
    return [Plan(arm, RATE if arm is None else RATE / 10, seed, 0.0, QUICK) for seed in (0, 1) for arm in arms]


# -- a cell ----------------------------------------------------------------------------------------------------------


def cell(plan: Plan, folder: Path) -> dict[str, Any]:
    """The row of a plan: its settings, and the figures of its start or of its rounds."""
    torch.set_num_threads(1)
    start = start_of(plan, folder)
    facts = {"arm": plan.arm, "rate": plan.rate, "seed": plan.seed, "bad": plan.bad}
    began = time.process_time()
    if plan.arm is None:
        figures = convergence(plan, folder)
    else:
        figures = play(
            start,
            data_of(plan),
            plan.arm,
            rate=plan.rate,
            lam=LAM,
            rounds=plan.sizes.rounds,
            steps=plan.sizes.steps,
            seed=plan.seed,
        )
    return {**facts, **figures, "seconds": round(time.process_time() - began, 1)}


def convergence(plan: Plan, folder: Path) -> dict[str, Any]:
    """The base's score, the start's, those after shorter and longer trainings, and that of four times the pairs."""
    data, sizes = data_of(plan), plan.sizes
    lengths = {steps: after(plan, folder, data, steps) for steps in (*sizes.curve, sizes.start)}
    more = data_of(plan, times=4)
    return {
        "base": score(base_of(plan, folder), data.held_out),
        "curve": sorted((steps, score(model, data.held_out)) for steps, model in lengths.items()),
        "four_times": score(after(plan, folder, more, 4 * sizes.start), data.held_out),
    }


def start_of(plan: Plan, folder: Path) -> LlamaForCausalLM:
    """The model that all arms of a seed begin from, made once."""
    place = folder / "models" / f"start-{plan.seed}-{plan.bad}.safetensors"
    return _kept(place, plan.seed, lambda: after(plan, folder, data_of(plan), plan.sizes.start))


def after(plan: Plan, folder: Path, data: Data, steps: int) -> LlamaForCausalLM:
    """The base of a seed after so many steps of supervised training, annealed to 0."""
    model = base_of(plan, folder)
    rng = Random(f"start {plan.seed}")
    supervised(model, data.train, data.targets, steps=steps, batch=30, rate=RATE, rng=rng)
    return model


def base_of(plan: Plan, folder: Path) -> LlamaForCausalLM:
    """The base of a seed, made once: it has read answers that are wrong by habit, to none of the other prompts."""

    def make() -> LlamaForCausalLM:
        model, rng = new_model(plan.seed), Random(f"base {plan.seed}")
        habits = Misled.draw(rng)
        data = data_of(plan, times=4)
        read = 4 * draw(rng, 16 * plan.sizes.base, {*data.train, *data.held_out})
        answers = [worked(rng, numbers, habits) for numbers in read]
        supervised(model, read, answers, steps=plan.sizes.base, batch=64, rate=3e-3, rng=rng)
        return model

    return _kept(folder / "models" / f"base-{plan.seed}.safetensors", plan.seed, make)


def data_of(plan: Plan, times: int = 1) -> Data:
    """The data of a seed; with ``times`` so many times the pairs. A share ``bad`` of the targets is wrong."""
    rng, seen = Random(f"data {plan.seed}"), set()
    held_out = draw(rng, plan.sizes.held_out, seen)
    held_out_targets = [worked(rng, numbers) for numbers in held_out]
    train = draw(rng, times * plan.sizes.pairs, seen)
    targets = [wrong(rng, numbers) if rng.random() < plan.bad else worked(rng, numbers) for numbers in train]
    return Data(train, targets, held_out, held_out_targets)


def _kept(place: Path, seed: int, make: Callable[[], LlamaForCausalLM]) -> LlamaForCausalLM:
    """A model whose weights are kept in a file, after it was made once."""
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in make().named_parameters()}
        with atomic_file(place) as file:
            save_file(weights, file)
    model = new_model(seed)
    model.load_state_dict(load_file(place), strict=False)  # the head shares the weights of the embedding
    return model


if __name__ == "__main__":
    run(main)
