"""Break the server in every way that we can think of, and count what is lost.

``skillweave serve`` runs in a process of its own on a micro weave of five packs. Memory has room for half of them, so
packs come and go all the time. The greedy answer of each pack and of the base to each prompt was computed before, alone
and in float32; every answer is compared with it.

- twice the sustainable rate: requests arrive at random moments and do not wait for each other
- loads and unloads: two packs that differ take turns under one name, added, asked and removed over HTTP
- kill -9 under traffic, and a restart at the same port
- a pack's file is damaged while serving (a bit flips, it is cut, empty, or gone), and healed
- a disk that fills: every write of the server fails, that of its log too
- malformed bodies, and requests that are no HTTP
- clients that send or read too slowly; clients that vanish at every stage of a request

A request is answered in full, refused with a status and a reason, or its connection breaks so that the client can tell
(clients that vanish, kill -9). Everything else is lost: no end, status 500, an answer that stops without a word, and
after each fault also what is left in the server. Claims: nothing is lost, no answer is wrong, memory is flat within 5%
under overload, and a second after clients vanish nothing runs or waits for them.

    python -m benchmarks.serve_faults            a few minutes on two cores
    python -m benchmarks.serve_faults --quick    the same faults, fewer times
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, judged, run
from benchmarks.serve_faults.clients import BODY_SECONDS, SETTLE, STALLED_SECONDS, malformed, slow, vanish
from benchmarks.serve_faults.overload import Trial, come_and_go, damage, full_disk, kill, overload
from benchmarks.serve_faults.served import Served, ServerProcess, make_served
from skillweave.progress import console
from skillweave.report import Table

NAME = "serve_faults"

Fault = Callable[[ServerProcess, Served, int], Coroutine[Any, Any, Trial]]


@dataclass(frozen=True)
class Plan:
    """How often each fault is tried."""

    prompts: int = 24
    requests: int = 2000
    cycles: int = 200
    kills: int = 2
    damage_rounds: int = 2
    full: int = 200
    bodies: int = 500
    slow: int = 12
    vanishing: int = 200


QUICK = Plan(
    prompts=4, requests=120, cycles=6, kills=1, damage_rounds=1, full=20, bodies=48, slow=2, vanishing=20
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    options = arguments(__doc__, ["micro"]).parse_args(argv)
    record = Record.begin(NAME, options, argv, [0])
    torch.set_num_threads(1)
    plan = QUICK if options.quick else Plan()
    with tempfile.TemporaryDirectory() as folder:
        console.quiet = True  # zipping the packs says a line for each
        try:
            served = make_served(Path(folder), plan.prompts)
        finally:
            console.quiet = False
        server = ServerProcess(served.weave, Path(folder) / "log", _options(served))
        try:
            record.rows = _tried(server, served, plan)
        finally:
            if server.alive():
                server.stop()
    record.claims = claims(record.rows)
    record.finish(_table(record.rows), _figure(record.rows))


def _options(served: Served) -> list[str]:
    return [
        "--pack-memory", str(int(2.5 * served.pack_bytes)), "--max-streams", "64",
        "--set", f"body_seconds={BODY_SECONDS}", "--set", f"stalled_seconds={STALLED_SECONDS}",
    ]  # fmt: skip


def _tried(server: ServerProcess, served: Served, plan: Plan) -> list[dict[str, Any]]:
    server.start()
    rows = []
    faults: list[tuple[Fault, int]] = [
        (overload, plan.requests), (come_and_go, plan.cycles), (damage, plan.damage_rounds), (full_disk, plan.full),
        (malformed, plan.bodies), (slow, plan.slow), (vanish, plan.vanishing), (kill, plan.kills),
    ]  # fmt: skip
    for fault, count in faults:
        before = server.rss()
        trial = asyncio.run(fault(server, served, count))
        if not server.alive():
            trial.tally.lost.append(f"the server is dead: {server.tail()}")
            server.start()
        rows.append(_row(trial, before, server.rss()))
        console.print(f"  {trial.name}: {_counts(rows[-1])}")
        for text in trial.tally.lost[:10]:
            console.print(f"    lost: {text}", markup=False)
    if server.stop() != 0:
        rows[-1]["lost"] += 1  # SIGTERM ends it in order after all that
    return rows


def _row(trial: Trial, before: float, after: float) -> dict[str, Any]:
    tally = trial.tally
    return {
        "fault": trial.name,
        "tried": trial.count,
        "requests": tally.tried,
        "right": tally.right,
        "refused": {str(status): count for status, count in sorted(tally.refused.items())},
        "broken": tally.broken,
        "wrong": tally.wrong,
        "lost": len(tally.lost),
        "rss_before_mb": round(trial.figures.pop("rss_before", before), 1),
        "rss_after_mb": round(trial.figures.pop("rss_after", after), 1),
        "note": trial.note,
        **trial.figures,
    }


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """What the rows say: nothing lost, nothing wrong, memory, and clients that vanish."""
    lost, wrong = sum(row["lost"] for row in rows), sum(row["wrong"] for row in rows)
    asked = sum(row["requests"] for row in rows)
    first = rows[0]
    growth = max(0.0, 100 * (first["rss_after_mb"] / first["rss_before_mb"] - 1))
    settled = max((row["settled_seconds"] for row in rows if "settled_seconds" in row), default=0.0)
    return [
        judged("requests", asked, asked, asked, ">= 1"),
        judged("of these: lost", lost, lost, lost, "<= 0"),
        judged("of these: answered wrongly", wrong, wrong, wrong, "<= 0"),
        judged("growth of memory at twice the sustainable rate, %", growth, growth, growth, "<= 5"),
        judged("seconds until nothing is left of slow and vanished clients", *[settled] * 3, f"<= {SETTLE:g}"),
    ]


def _counts(row: dict[str, Any]) -> str:
    refused = ", ".join(f"{count} x {status}" for status, count in row["refused"].items())
    return (
        f"{row['right']} right, refused: {refused or 'none'}, {row['broken']} broken off, {row['wrong']} wrong, "
        f"{row['lost']} lost"
    )


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    header = ["fault", "requests", "right", "refused", "broken off", "wrong", "lost", "RSS, MB", "what else"]
    lines = [
        [
            row["fault"], f"{row['requests']:,}", f"{row['right']:,}",
            ", ".join(f"{count:,} x {status}" for status, count in row["refused"].items()) or "0",
            f"{row['broken']:,}", str(row["wrong"]), str(row["lost"]),
            f"{row['rss_before_mb']:.0f} to {row['rss_after_mb']:.0f}", row["note"],
        ]
        for row in rows
    ]  # fmt: skip
    return Table(header, lines)


def _figure(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axis = figure.subplots()
    names, left = [row["fault"] for row in rows], [0.0] * len(rows)
    parts = {
        "right": ([row["right"] for row in rows], "#0072B2"),
        "refused, with a reason": ([sum(row["refused"].values()) for row in rows], "#56B4E9"),
        "broken off, and seen": ([row["broken"] for row in rows], "#999999"),
        "wrong or lost": ([row["wrong"] + row["lost"] for row in rows], "#D55E00"),
    }
    for label, (counts, color) in parts.items():
        shares = [100 * count / max(1, row["requests"]) for count, row in zip(counts, rows, strict=True)]
        axis.barh(names, shares, left=left, color=color, label=label)
        left = [one + share for one, share in zip(left, shares, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("% of requests")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, 1.15), ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    run(main)
