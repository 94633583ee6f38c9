"""Compare the verifiers' scores with a person's, on answers as people and models write them.

The authors of the verifiers wrote the rulings in tests/tasks/rulings, each before a verifier was run on it, and then
fixed the faults that they showed. So agreement here means that nothing known is wrong. It does not say how often the
verifiers are right on answers that nobody thought of. Every remaining disagreement is listed with its reason.

    python -m benchmarks.verifiers            seconds
    python -m benchmarks.verifiers --quick    every tenth ruling
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, run
from skillweave.report import Table
from skillweave.tasks import wilson
from skillweave.tasks.verifiers import options_for, verify

NAME = "verifiers"
RULINGS = Path(__file__).parents[1] / "tests" / "tasks" / "rulings"


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    options = arguments(__doc__, ["micro"]).parse_args(argv)
    record = Record.begin(NAME, options, argv, [])
    rulings = [json.loads(line) for path in sorted(RULINGS.glob("*.jsonl")) for line in _lines(path)]
    if options.quick:
        rulings = rulings[::10]
    judged = [{**ruling, "score": _score(ruling)} for ruling in rulings]
    verifiers = sorted({ruling["verifier"] for ruling in judged})
    rows = [_row(name, [ruling for ruling in judged if ruling["verifier"] == name]) for name in verifiers]
    everything = _row("all", judged)
    apart = [ruling for ruling in judged if not _agrees(ruling)]
    record.rows = [*rows, everything, *({"disagreement": ruling} for ruling in apart)]
    record.claims = [
        Claim(
            "share of answers that get the score a person gives",
            everything["agreement"],
            everything["low"],
            everything["high"],
            ">= 0.98",
            everything["low"] >= 0.98,
        ),
        Claim(
            "disagreements without a reason",
            *[sum("why" not in ruling for ruling in apart)] * 3,
            "<= 0",
            not any("why" not in ruling for ruling in apart),
        ),
    ]
    cells = [
        [row["verifier"], str(row["rulings"]), str(row["agree"]), f"{row['agreement']:.1%}", ""]
        for row in [*rows, everything]
    ]
    cells += [
        [
            f"{ruling['verifier']}: {ruling['answer']!r}",
            f"gold {ruling['gold']!r}",
            f"{ruling['score']:g}",
            f"a person: {ruling['ruling']:g}",
            ruling.get("why", ""),
        ]
        for ruling in apart
    ]
    record.finish(Table(["verifier", "rulings", "agree", "share", "why not"], cells), _figure([*rows, everything]))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _score(ruling: dict[str, Any]) -> float:
    options = options_for(ruling["verifier"], ruling.get("options", {}))
    return verify(ruling["verifier"], ruling["answer"], ruling["gold"], options)


def _agrees(ruling: dict[str, Any]) -> bool:
    return abs(ruling["score"] - ruling["ruling"]) < 1e-9


def _row(name: str, rulings: list[dict[str, Any]]) -> dict[str, Any]:
    agree = sum(map(_agrees, rulings))
    low, high = wilson(agree, len(rulings))
    share = agree / len(rulings)
    return {"verifier": name, "rulings": len(rulings), "agree": agree, "agreement": share, "low": low, "high": high}


def _figure(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 3))
    axes = figure.add_subplot()
    names = [f"{row['verifier']} ({row['rulings']})" for row in rows]
    axes.barh(names, [row["agreement"] for row in rows], color="#00796b")
    axes.set_xlabel("share of answers judged as a person judges them")
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    run(main)
