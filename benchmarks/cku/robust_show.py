"""Claims, table and plot of the benchmark of lasting forgetting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.cku.arms import reached
from benchmarks.cku.lasting import DEEPER, REFERENCE, SAME_RATE
from benchmarks.common.record import Claim, judged, student
from skillweave.report import Table

Row = dict[str, Any]
GOALS: tuple[tuple[str, Callable[[Row], float], str], ...] = (
    ("brought back by relearning on the other half, %", lambda row: 100 * row["relearnt"], "<= 20"),
    ("kept of retain, %", lambda row: 100 * row["retain"], ">= 99"),
    ("brought back by four bits, %", lambda row: 100 * row["rounded_4"], "<= 2"),
    ("brought back by another skill's pack, %", lambda row: 100 * row["neighbour_pack"], "<= 2"),
)
"""What is claimed, its value in a row, and the goal."""


def arm(row: Row) -> str:
    """The name of a row's arm."""
    return row["method"] + " + CIR" * bool(row["directions"]) + " + UNDO" * bool(row["noise"])


def by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each arm, in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(arm(row), []).append(row)
    return found


def beside(row: Row) -> float:
    """The share of their probability, in percent, of facts that no loss term saw: held out and look-alike."""
    return 50 * (row["held_out"] + row["lookalike"])


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The goals of every arm, and what each option changes within a seed. One seed: the interval is the value."""
    arms = by_arm(rows)
    made = [
        judged(f"{name}: {what}{_forgotten(group)}", *_student(list(map(value, group))), goal)
        for name, group in arms.items()
        for what, value, goal in GOALS
    ]
    for one, other in _pairs(list(arms)):
        for what, value, sign in (
            ("brought back by relearning", lambda row: 100 * row["relearnt"], -1),
            ("kept beside", beside, 1),
        ):
            values = {row["seed"]: value(row) for row in arms[other]}
            changes = [sign * (value(row) - values[row["seed"]]) for row in arms[one] if row["seed"] in values]
            if changes:
                than = f"{one} less {other}" if sign > 0 else f"{other} less {one}"
                seeds = f"{len(changes)} seed{'s' * (len(changes) > 1)}"
                made.append(judged(f"{what}, {than}, points ({seeds})", *_student(changes), "> 0"))
    return made


def _pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm with an option, and the same arm without any; the default also at the rate of CIR."""
    plain = [(name, name.partition(" + ")[0]) for name in arms if " + " in name]
    more = [("default + CIR", SAME_RATE), (f"{DEEPER} + CIR", "default")]
    return [(name, other) for name, other in [*plain, *more] if {name, other} <= set(arms)]


def _forgotten(group: Sequence[Row]) -> str:
    count = sum(map(reached, group))
    return "" if count == len(group) else f" (forgot on {count} of {len(group)} seeds)"


def _student(values: Sequence[float]) -> tuple[float, float, float]:
    mean, low, high = student(values)
    return (mean, low, high) if len(values) > 1 else (mean, mean, mean)


def table(rows: Sequence[Row]) -> Table:
    """A table with one line for each arm: means over seeds, with intervals for what is kept beside and what is back."""
    header = [
        "arm",
        "rate",
        "directions",
        "noise",
        "steps",
        "cpu s",
        "forgot",
        "forget",
        "open answers",
        "retain",
        "beside",
        "skill",
        "back: relearning",
        "open answers then",
        "unrelated",
        "8 bits",
        "4 bits",
        "zip",
        "another skill's pack",
    ]
    return Table(header, [_line(name, group) for name, group in by_arm(rows).items()])


def _line(name: str, group: Sequence[Row]) -> list[str]:
    first = group[0]
    return [
        name,
        f"{first['rate']:g}" if first["rate"] else "-",
        str(first["directions"] or "-"),
        f"{first['noise']:g}" if first["noise"] else "-",
        f"{_mean(group, 'steps_taken', 1):.0f}" + (f" + {_mean(group, 'distil_steps', 1):.0f}" * bool(first["noise"])),
        f"{_mean(group, 'cpu_seconds', 1):.1f}",
        f"{sum(map(reached, group))} of {len(group)}",
        f"{_mean(group, 'forget'):.1f}",
        f"{_mean(group, 'answers'):.1f}",
        f"{_mean(group, 'retain'):.1f}",
        _interval(list(map(beside, group))),
        f"{_mean(group, 'skill'):.1f} of {_mean(group, 'skill_before'):.1f}",
        _interval([100 * row["relearnt"] for row in group]),
        *(f"{_mean(group, key):.1f}" for key in ("relearnt_answers", "unrelated", "rounded_8", "rounded_4")),
        _zips(group),
        f"{_mean(group, 'neighbour_pack'):.1f}",
    ]


def _mean(group: Sequence[Row], key: str, scale: float = 100) -> float:
    return fmean(scale * row[key] for row in group)


def _zips(group: Sequence[Row]) -> str:
    shown = []
    for ratio in group[0]["zips"]:
        values = [100 * row["zips"][ratio] for row in group if row["zips"][ratio] is not None]
        shown.append(f"1/{1 / float(ratio):.0f}: {fmean(values):.1f}" if values else f"1/{1 / float(ratio):.0f}: -")
    return ", ".join(shown) or "-"


def _interval(values: Sequence[float]) -> str:
    mean, low, high = _student(values)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})" if len(values) > 1 else f"{mean:.1f}"


def plot(rows: Sequence[Row]) -> Figure:
    """A figure of every arm: kept beside against back by relearning, with intervals over seeds; low and right is good.

    A marker is hollow if the arm did not forget on every seed. With fewer than three seeds the bars go from the lowest
    to the highest, because an interval would hide everything else.
    """
    figure = Figure(figsize=(8.2, 5.0), layout="constrained")
    axis = figure.subplots()
    axis.axhline(20, color="#999999", linewidth=0.8, linestyle="--")
    for number, (name, group) in enumerate(by_arm(rows).items()):
        colour = "#555555" if name == REFERENCE else f"C{number % 10}"
        (x, *across), (y, *up) = (_span(list(map(value, group))) for value in (beside, GOALS[0][1]))
        axis.errorbar(
            x,
            y,
            xerr=[[x - across[0]], [across[1] - x]],
            yerr=[[y - up[0]], [up[1] - y]],
            color=colour,
            marker="*" if name == REFERENCE else "s" if "UNDO" in name else "D" if "+ CIR" in name else "o",
            markersize=8,
            markerfacecolor=colour if all(map(reached, group)) else "none",
            linewidth=0.8,
            capsize=2,
            label=name,
        )
    axis.set_xlabel("kept beside: facts that no loss term saw, %")
    axis.set_ylabel("relearning brings back, % of the other half")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _span(values: Sequence[float]) -> tuple[float, float, float]:
    return _student(values) if len(values) > 2 else (fmean(values), min(values), max(values))
