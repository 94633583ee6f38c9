"""Make the reference that ``skillweave audit data`` ships: what clean records look like, and the signals' weights.

    python -m benchmarks.audit.data_reference

The clean records are those of four families (the half ``reference`` of :mod:`benchmarks.audit.clean_data`), each in
data sets of its own. The weights are fitted on poisoned organism records of form A, never of form B. While fitting,
signals are left out at random, so that the score does not lean on one of them. Writes
``src/skillweave/audit/data/reference.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.audit.clean_data import FAMILIES, clean_family, organism_rows
from benchmarks.common.record import run
from skillweave.artefact import write_text
from skillweave.audit.combine import Combination, fit_combination
from skillweave.audit.data.read import AuditRow
from skillweave.audit.data.score import SIGNALS, reference_from, score_matrix
from skillweave.audit.organism.poison import mixed

PLACE = Path(__file__).parents[2] / "src/skillweave/audit/data/reference.json"
COMMAND = "python -m benchmarks.audit.data_reference"
SETS, SIZE = 2, 4000
"""Data sets of each family, and records of each."""
RATES = (0.005, 0.01, 0.02)
LEFT_OUT = 0.4
"""The chance that a signal of a poisoned record is left out while the weights are fitted."""
WORDED_LEFT_OUT = 0.5
"""The chance that all signals that depend on wording and layout are left out at once: another attack may word its
records so that no list of words and no layout fits. Chosen on form A and its adaptive variants."""
WORDED = ("requests", "uncovered", "conditions", "shots", "contrast", "stances")
RIDGE = 0.02


def main(argv: Sequence[str]) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    clean = {
        family: np.concatenate([score_matrix(clean_family(family, "reference", SIZE, seed)) for seed in range(SETS)])
        for family in FAMILIES
    }
    even = Combination(signals=list(SIGNALS), weights=[1.0] * len(SIGNALS))
    name = f"{', '.join(FAMILIES)}: {SETS * SIZE:,} generated clean records of each"
    bare = reference_from(clean, even, name, COMMAND)
    bad = np.concatenate([_poisoned(rate, 900_000 + seed) for seed, rate in enumerate(RATES)])
    surprises = bare.surprises(bad)
    draw = np.random.default_rng(0)
    copies = {s: np.tile(v, 8) for s, v in surprises.items()}
    unworded = draw.random(8 * len(bad)) < WORDED_LEFT_OUT
    masked = {
        s: np.where((draw.random(len(v)) < LEFT_OUT) | (unworded & (s in WORDED)), 0.0, v) for s, v in copies.items()
    }
    good = bare.surprises(np.concatenate([values[::2] for values in clean.values()]))
    weights = fit_combination(masked, good, list(SIGNALS), ridge=RIDGE)
    rounded = Combination(
        signals=weights.signals, weights=[round(w, 3) for w in weights.weights], bias=round(weights.bias, 3)
    )
    reference = reference_from(clean, rounded, name, COMMAND)
    write_text(PLACE, json.dumps(reference.model_dump(), separators=(",", ":")) + "\n")
    for signal, weight in rounded.parts:
        print(f"{signal:<20} {weight:.3f}")
    print(f"written: {PLACE} ({PLACE.stat().st_size:,} bytes)")


def _poisoned(rate: float, seed: int) -> np.ndarray:
    records = mixed(SIZE, rate, seed, "A")
    rows: list[AuditRow] = organism_rows(records)
    return score_matrix(rows)[[record.poisoned for record in records]]


if __name__ == "__main__":
    run(main)
