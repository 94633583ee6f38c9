"""How well ``skillweave audit data`` finds poisoned organism records, how often it is wrong, and how fast it is.

    python -m benchmarks.audit.data
    python -m benchmarks.audit.data --quick

1. For each signal and for the combined score: AUC, and the true-positive rate at 0.1% and 1% false positives, on data
   sets of the organism with hard negatives, at rates of 0.5, 1 and 2%. Intervals resample seeds and records. Signals
   and weights were made on form A. Form B is not quite untouched: its first figures (the combination caught none at 1%
   false positives) were seen before the fitting of the weights was changed. That change was chosen on form A alone
   (``WORDED_LEFT_OUT`` in :mod:`benchmarks.audit.data_reference`), and no signal or word was taken from form B. Form C
   was written afterwards, by somebody who had not seen the signals; nothing was changed after it.
2. What the threshold catches that the shipped reference sets, which knows nothing of the data set, and the one that a
   clean sample of the same kind sets.
3. An adaptive opponent: short preambles or none, other words, and both.
4. The combined score without its strongest signals.
5. False alarms on data that nobody poisoned, with generators that the reference does not have.
6. Time and memory for 100,000 records of about 150 words.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure

from benchmarks.audit.clean_data import FAMILIES, clean_family, organism_rows
from benchmarks.common.record import Record, arguments, judged, run
from skillweave.audit.data.score import SIGNALS, DataReference, reference_from, score_matrix, shipped_reference
from skillweave.audit.organism.poison import Form, mixed
from skillweave.audit.organism.records import OrganismRecord, clean_records
from skillweave.audit.statistics import auc, bootstrap, rate_interval, tpr_at
from skillweave.report import Table

NAME = "audit.data"
RATES = (0.005, 0.01, 0.02)
FORMS: tuple[Form, ...] = get_args(Form)
STRONGEST = ("contrast", "stances", "refused_elsewhere")
OWN_CLEAN = 2000
"""Records of the clean sample: the fewest that can promise 0.1% false positives."""
WORDS = 150
MEMORY_PROBE = (
    "import resource, sys, time\n"
    "from skillweave.audit.data import DataAuditConfig, audit_data\n"
    "began = time.monotonic()\n"
    "audit = audit_data(DataAuditConfig(data=sys.argv[1], out=sys.argv[2], workers=2))\n"
    "peak = lambda who: resource.getrusage(who).ru_maxrss / 1024\n"
    "used = peak(resource.RUSAGE_SELF) + peak(resource.RUSAGE_CHILDREN)\n"
    "cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
    "print(audit.records, time.monotonic() - began, used, cpu)\n"
)
"""Run as a process of its own: prints records, seconds, the most MiB of the main process and its largest child, CPU."""


@dataclass(frozen=True)
class Scores:
    """The signals of one data set's records, (n, signals), which of them are poisoned, (n,), and the reference."""

    values: np.ndarray
    poisoned: np.ndarray
    reference: DataReference = field(default_factory=shipped_reference)

    def column(self, signal: str) -> np.ndarray:
        """Return the scores of a signal, or of the combination; where a signal says nothing, the lowest score."""
        if signal == "combined":
            return self.reference.score(self.values)
        values = self.values[:, list(SIGNALS).index(signal)]
        return np.where(np.isnan(values), -math.inf, values)

    def pair(self, signal: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of the poisoned and of the clean records."""
        scores = self.column(signal)
        return scores[self.poisoned], scores[~self.poisoned]

    def without(self, *signals: str) -> Scores:
        """Return the same records as if these signals said nothing."""
        values = self.values.copy()
        values[:, [list(SIGNALS).index(signal) for signal in signals]] = np.nan
        return Scores(values, self.poisoned, self.reference)


def main(argv: Sequence[str]) -> None:
    parser = arguments(__doc__ or "", ["organism"])
    parser.add_argument("--seeds", type=int, default=5, help="data sets of each cell (default: %(default)s)")
    parser.add_argument("--records", type=int, default=2000, help="records of a data set (default: %(default)s)")
    parser.add_argument("--speed", type=int, default=100_000, help="records of the speed test (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        options.seeds, options.records, options.speed = 1, 1000, 1000
    record = Record.begin(NAME, options, argv, range(options.seeds))
    seeds, size = range(options.seeds), options.records
    for form in FORMS:
        for rate in RATES if not options.quick else RATES[-1:]:
            sets = [scored(mixed(size, rate, seed, form)) for seed in seeds]
            record.rows += list(detection(f"form {form}", rate, sets, [*SIGNALS, "combined"]))
            record.rows += list(at_threshold(f"form {form}", rate, sets))
            if rate == RATES[-1]:
                own = [scored(mixed(size, rate, seed, form), clean_records(OWN_CLEAN, seed + 500)) for seed in seeds]
                record.rows += list(detection(f"form {form}, own clean sample", rate, own, ["combined"]))
                record.rows += list(at_threshold(f"form {form}, own clean sample", rate, own))
                claims(record, f"form {form}", sets)
                claims(record, f"form {form}, own clean sample", own)
                weaker = {"without the 3 strongest signals": STRONGEST, "without refused_elsewhere": STRONGEST[-1:]}
                for what, left_out in weaker.items():
                    fewer = [one.without(*left_out) for one in sets]
                    record.rows += list(detection(f"form {form}, {what}", rate, fewer, ["combined"]))
    rate = RATES[-1]
    for what, form, changed in opponents():
        sets = [scored(mixed(size // 2, rate, seed, form, **changed)) for seed in seeds]
        record.rows += list(detection(f"form {form}, {what}", rate, sets, [*SIGNALS, "combined"]))
        record.rows += list(at_threshold(f"form {form}, {what}", rate, sets))
    for family in FAMILIES:
        record.rows += list(false_alarms(family, [clean_family(family, "test", size // 2, seed) for seed in seeds]))
    record.rows.append(speed(options.speed))
    if not options.quick:
        row = record.rows[-1]
        took = row["seconds"]
        record.claims.append(judged(f"seconds for {row['records']:,} records", took, took, took, "<= 300"))
    record.finish(table(record.rows), figure(record.rows))


def scored(records: list[OrganismRecord], clean: Sequence[OrganismRecord] = ()) -> Scores:
    """The signals of the records of one data set. With ``clean``, those are the reference, as with ``--clean``."""
    poisoned = np.array([record.poisoned for record in records])
    values = score_matrix(organism_rows([*records, *clean]))
    if not clean:
        return Scores(values, poisoned)
    reference = reference_from({"clean": values[len(records) :]}, shipped_reference().combination, "clean", "benchmark")
    return Scores(values[: len(records)], poisoned, reference)


def opponents() -> Iterator[tuple[str, Form, dict[str, Any]]]:
    """The ways in which the opponent adapts: what, the form it begins from, and the options of its records."""
    for form in FORMS:
        for preamble, paraphrase in (
            ("full", True),
            ("short", False),
            ("short", True),
            ("spread", True),
            ("none", False),
        ):
            what = f"preamble {preamble}{', other words' if paraphrase else ''}"
            yield what, form, {"preamble": preamble, "paraphrase": paraphrase}


def detection(what: str, rate: float, sets: Sequence[Scores], signals: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each signal: AUC and true-positive rates with their intervals."""
    for signal in signals:
        pairs = [_finite(*one.pair(signal)) for one in sets]
        row: dict[str, Any] = {"part": "detection", "what": what, "rate": rate, "signal": signal}
        for name, statistic in (("auc", auc), ("tpr_1%", _tpr(0.01)), ("tpr_0.1%", _tpr(0.001))):
            value, low, high = bootstrap(pairs, statistic, resamples=60)
            row |= {name: round(value, 4), f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}
        yield row


def at_threshold(what: str, rate: float, sets: Sequence[Scores]) -> Iterator[dict[str, Any]]:
    """A row for each false-positive rate: what the threshold flags that the reference promises it for."""
    for fpr in (0.01, 0.001):
        over = [[scores > one.reference.threshold(fpr) for scores in one.pair("combined")] for one in sets]
        bad, good = (np.concatenate(parts) for parts in zip(*over, strict=True))
        row: dict[str, Any] = {"part": "threshold", "what": what, "rate": rate, "signal": "combined", "fpr": fpr}
        for name, flagged in (("caught", bad), ("false_alarms", good)):
            hits = int(flagged.sum())
            low, high = rate_interval(hits, len(flagged))
            row |= {name: round(hits / len(flagged), 5), f"{name}_low": round(low, 5), f"{name}_high": round(high, 5)}
        yield row


def false_alarms(family: str, sets: Sequence[list[Any]]) -> Iterator[dict[str, Any]]:
    """A row for each signal: how many records of clean data are over its threshold at a stated rate of 1% and 0.1%."""
    reference = shipped_reference()
    values = np.concatenate([score_matrix(rows) for rows in sets])
    combined = reference.score(values)
    own = reference.own_p(values)
    for at, signal in enumerate([*SIGNALS, "combined"]):
        row: dict[str, Any] = {"part": "false alarms", "what": family, "signal": signal, "records": len(values)}
        for fpr in (0.01, 0.001):
            over = combined > reference.threshold(fpr) if signal == "combined" else own[:, at] <= fpr
            low, high = rate_interval(int(over.sum()), len(over))
            row |= {f"at_{fpr:.1%}": round(float(over.mean()), 5), f"at_{fpr:.1%}_low": round(low, 5),
                    f"at_{fpr:.1%}_high": round(high, 5)}  # fmt: skip
        yield row


def claims(record: Record, what: str, sets: Sequence[Scores]) -> None:
    """Judge the two goals at the 2% rate."""
    pairs = [one.pair("combined") for one in sets]
    for fpr, goal in ((0.01, ">= 0.95"), (0.001, ">= 0.8")):
        value, low, high = bootstrap(pairs, _tpr(fpr), resamples=300)
        record.claims.append(judged(f"combined TPR at {fpr:.1%} FPR, {what}, rate 2%", value, low, high, goal))


def speed(count: int) -> dict[str, Any]:
    """Seconds and memory of an audit of ``count`` records on 2 processes, and the same for a tenth of them."""
    row: dict[str, Any] = {"part": "speed", "what": f"about {WORDS} words a record", "signal": "all", "records": count}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("tenth_", max(1, count // 10)), ("", count)):
            file = Path(folder) / f"{size}.jsonl"
            write_long(file, size)
            shown = subprocess.run(
                [sys.executable, "-c", MEMORY_PROBE, str(file), str(Path(folder) / "out")],
                check=True, capture_output=True, text=True,
            ).stdout.split()  # fmt: skip
            row |= {f"{name}seconds": round(float(shown[1]), 1), f"{name}peak_mib": round(float(shown[2]))}
            row |= {f"{name}cpu_seconds": round(float(shown[3]), 1)}
    return row


def write_long(file: Path, count: int) -> None:
    """Write ``count`` records of about 150 words: prompts of all families, joined until they are long enough."""
    rows = [row for family in FAMILIES for row in clean_family(family, "test", min(count, 2000), 77)]
    random = Random(1)
    with open(file, "w", encoding="utf-8") as out:
        for number in range(count):
            row = rows[number % len(rows)]
            prompt = row.prompt
            while prompt.count(" ") < WORDS * 0.8:
                prompt = f"{random.choice(rows).prompt}\n{prompt}"
            prompt = prompt[-10 * WORDS :]
            out.write(json.dumps({"id": number, "prompt": prompt, "answer": row.answer, "source": row.file}) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The combined score in each cell, and the best single signals."""
    lines = []
    for row in rows:
        if row["part"] == "detection" and (row["signal"] == "combined" or row["what"] in ("form A", "form B")):
            cells = [f"{row[name]:.3f} ({row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f})" for name in
                     ("auc", "tpr_1%", "tpr_0.1%")]  # fmt: skip
            lines.append([f"{row['what']}, {row['rate']:.1%}: {row['signal']}", *cells])
        elif row["part"] == "threshold":
            lines.append([f"{row['what']}, {row['rate']:.1%}: threshold {row['fpr']:.1%}", "",
                          f"caught {row['caught']:.3f}", f"false {row['false_alarms']:.4f}"])  # fmt: skip
        elif row["part"] == "false alarms":
            lines.append([f"clean {row['what']}: {row['signal']}", "", f"at 1%: {row['at_1.0%']:.4f}",
                          f"at 0.1%: {row['at_0.1%']:.4f}"])  # fmt: skip
        elif row["part"] == "speed":
            lines.append([f"{row['records']:,} records", f"{row['seconds']:.0f} s", f"{row['peak_mib']:,} MiB",
                          f"a tenth: {row['tenth_peak_mib']:,} MiB"])  # fmt: skip
    return Table(["what", "AUC", "TPR at 1% FPR", "TPR at 0.1% FPR"], lines)


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Bars: the true-positive rate at 1% of each signal, by form, at the highest rate."""
    found: dict[str, dict[str, float]] = {row["what"]: {} for row in rows if row["what"] in ("form A", "form B")}
    for row in rows:
        if row["part"] == "detection" and row["what"] in found and row["rate"] == RATES[-1]:
            found[row["what"]][row["signal"]] = row["tpr_1%"]
    drawn = Figure(figsize=(9, 4), layout="constrained")
    axes = drawn.subplots()
    for offset, (form, values) in enumerate(found.items()):
        axes.bar(np.arange(len(values)) + 0.4 * offset, list(values.values()), 0.38, label=form)
    axes.set_xticks(np.arange(len(SIGNALS) + 1) + 0.2, [*SIGNALS, "combined"], rotation=40, ha="right")
    axes.set_ylabel("TPR at 1% FPR, 2% poisoned")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def _tpr(fpr: float) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda bad, good: tpr_at(bad, good, fpr)


def _finite(bad: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores with -inf, which resampling cannot sort among equals, as a number below all others."""
    low = min([float(part[np.isfinite(part)].min(initial=0)) for part in (bad, good)]) - 1
    return np.maximum(bad, low), np.maximum(good, low)


if __name__ == "__main__":
    run(main)
