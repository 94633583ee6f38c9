"""Mutate every kind of artefact and input file: each mutation is refused in a sentence, or changes nothing.

Each kind of artefact (delta, pack, weave, router, adapter, base folder; those with tokenizers and added rows, with
turned and stacked layers, exported as adapters, and adapters that PEFT must merge) and of input (rows of tasks in each
format, traces, a corpus, prompts, settings) is mutated by a seeded generator and read. tests/helpers/fuzz/oracle.py
says which outcomes are right. Everything else is listed with its seed: a traceback (any other exception), a silent
difference (another result), a nameless refusal (the message names no file) or a hang.

    python -m benchmarks.fuzz            2,000 mutations of each kind, half an hour to an hour on one core
    python -m benchmarks.fuzz --quick    20 of each
    python -m benchmarks.fuzz --kind base --first 310 --mutations 1    repeat one
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, positive, run
from skillweave.errors import UserError
from skillweave.progress import bar
from skillweave.report import Table

_TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(_TESTS))

NAME = "fuzz"
MUTATIONS = 2000
OUTCOMES = {"refused": "#0072B2", "same": "#999999", "as written": "#009E73"}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro"])
    parser.add_argument("--mutations", type=positive, help=f"of each kind (default: {MUTATIONS:,})")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--kind", action="append", help="one kind alone. Repeatable.")
    parser.add_argument("--jobs", type=positive, default=1, help="kinds that are fuzzed at once (default: 1)")
    options = parser.parse_args(argv)
    count = options.mutations or (20 if options.quick else MUTATIONS)
    record = Record.begin(NAME, options, argv, [options.first])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The remembered fingerprints of these bases are deleted with them.
        os.environ["SKILLWEAVE_CACHE"] = str(Path(folder) / "cache")
        tallies = _fuzzed(Path(folder), range(options.first, options.first + count), options.kind, options.jobs)
    for tally in tallies:
        slowest = {"slowest_seconds": round(tally.slowest, 3), "slowest": tally.slowest_case}
        record.rows.append({"kind": tally.kind, "mutations": tally.mutations, **tally.outcomes, **slowest})
    record.rows += [{"fault": fault} for tally in tallies for fault in tally.faults]
    total = sum(tally.mutations for tally in tallies)
    for outcome in ("traceback", "silent difference", "nameless", "hang"):
        found = sum(tally.outcomes[outcome] for tally in tallies)
        claim = f"mutations that end as: {outcome} (of {total:,})"
        record.claims.append(Claim(claim, found, found, found, "<= 0", found == 0))
    names = [*OUTCOMES, "traceback", "silent difference", "nameless", "hang"]
    cells = [
        [tally.kind, str(tally.mutations), *(str(tally.outcomes[name]) for name in names), f"{tally.slowest:.2f} s"]
        for tally in tallies
    ]
    cells += [[fault, *[""] * (len(names) + 2)] for tally in tallies for fault in tally.faults]
    record.finish(Table(["kind", "mutations", *names, "slowest"], cells), _figure(tallies))


def _fuzzed(folder: Path, seeds: range, wanted: Sequence[str] | None, jobs: int) -> list:
    from helpers.fuzz.artefacts import artefact_kinds
    from helpers.fuzz.inputs import input_kinds
    from helpers.fuzz.packs import pack_kinds

    kinds = [*artefact_kinds(folder / "artefacts"), *pack_kinds(folder / "packs"), *input_kinds(folder / "inputs")]
    known = [kind.name for kind in kinds]
    if unknown := set(wanted or ()) - set(known):
        raise UserError(f"--kind {min(unknown)}: no such kind; known: {', '.join(known)}")
    chosen = [kind for kind in kinds if not wanted or kind.name in wanted]
    _CHOSEN[:] = chosen
    tallies = []
    # Forked, because what reads a kind is a closure; each process has a folder of its own.
    with (
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool,
        bar("fuzzing", len(chosen)) as advance,
    ):
        for tally in pool.map(_one, range(len(chosen)), [seeds] * len(chosen), [folder] * len(chosen)):
            tallies.append(tally)
            advance(note=f"{tally.kind}: {len(tally.faults)} faults")
    return tallies


_CHOSEN: list = []
"""The kinds of this run, for its forked processes."""


def _one(index: int, seeds: range, folder: Path) -> Any:
    from helpers.fuzz.oracle import fuzz

    return fuzz(_CHOSEN[index], seeds, folder / f"work-{index}")


def _figure(tallies: list) -> Figure:
    figure = Figure(figsize=(7, 1 + 0.28 * len(tallies)), layout="constrained")
    axes = figure.add_subplot()
    names, begin = [tally.kind for tally in tallies], [0.0] * len(tallies)
    for outcome, colour in {**OUTCOMES, "fault": "#D55E00"}.items():
        counts = [len(tally.faults) if outcome == "fault" else tally.outcomes[outcome] for tally in tallies]
        shares = [count / tally.mutations for count, tally in zip(counts, tallies, strict=True)]
        axes.barh(names, shares, left=begin, color=colour, label=outcome)
        begin = [one + more for one, more in zip(begin, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.set_xlabel("share of the mutations")
    axes.legend(ncols=4, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


if __name__ == "__main__":
    run(main)
