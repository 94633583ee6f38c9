"""Table and plots of the benchmark of scarce traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import student
from benchmarks.e3tir.scarce_arms import ARMS, LENGTH, SFT_RL, ZERO
from skillweave.report import Table

Condition = tuple[int, float, int, int, int]


def condition_of(row: Mapping[str, Any]) -> Condition:
    """The condition of a row: traces, share of hidden calls, shortest prompt, longest with a trace, batches."""
    return row["traces"], row["hidden"], row["least"], row["longest"], row["batches"]


def name_of(condition: Condition) -> str:
    """The condition in words."""
    traces, hidden, least, longest, batches = condition
    covered = "" if longest == LENGTH else f", traces of {longest} operations for prompts of {least} to {LENGTH}"
    return f"{traces} traces, {hidden:.0%} of the calls hidden, {batches} batches{covered}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table with one line for each condition and arm: means over seeds, with intervals."""
    header = [
        "condition, arm",
        "seeds",
        "score",
        "in rollouts, last 5",
        "expert tokens",
        "policy tokens",
        "rate",
        "sft",
        "seconds",
    ]
    lines = []
    for condition in sorted({condition_of(row) for row in rows}, key=lambda it: (-it[3], -it[1], -it[4], it[0])):
        for arm in ARMS:
            group = [row for row in rows if (condition_of(row), row["arm"]) == (condition, arm)]
            if group:
                lines.append(_line(f"{name_of(condition)}: {arm}", group))
    return Table(header, lines)


def _line(name: str, group: Sequence[dict[str, Any]]) -> list[str]:
    def mean(key: str) -> float:
        return fmean(row[key] for row in group)

    late = [fmean(row["curve"][-5:]) for row in group if row["curve"]]
    rate, epochs = group[0]["sft"]
    return [
        name,
        str(len(group)),
        interval([100 * row["score"] for row in group]),
        f"{100 * fmean(late):.1f}" if late else "-",
        f"{mean('expert_tokens'):,.0f}",
        f"{mean('sampled_tokens'):,.0f}",
        f"{group[0]['rate']:g}",
        f"{rate:g}, {epochs} epochs",
        f"{mean('seconds'):.0f}",
    ]


def interval(values: Sequence[float]) -> str:
    """A mean with its interval, or alone if there is one value."""
    mean, low, high = student(values)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})" if len(values) > 1 else f"{mean:.1f}"


def plot(rows: Sequence[dict[str, Any]], ours: str) -> Figure:
    """Score against batches, traces (with hidden calls and without) and the share of hidden calls.

    A panel needs two places on its axis; without any such panel, the batches are shown.
    """
    whole = [row for row in rows if row["longest"] == LENGTH]
    most = max((row["batches"] for row in rows), default=0)
    long = [row for row in whole if row["batches"] == most]
    hidden, open_ = ([row for row in long if row["hidden"] == share] for share in (1.0, 0.0))
    panels = [
        ("batches of rollouts", "16 traces, hidden calls", "batches", _with(whole, traces=16, hidden=1.0)),
        ("expert traces", "hidden calls", "traces", hidden),
        ("expert traces", "open calls", "traces", open_),
        ("share of hidden calls", "16 traces", "hidden", _with(long, traces=16)),
    ]
    shown = [panel for panel in panels if len({row[panel[2]] for row in panel[3]}) > 1] or panels[:1]
    figure = Figure(figsize=(2.8 * len(shown) + 2, 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, (label, title, key, group) in zip(axes, shown, strict=True):
        _curves(axis, group, key, ours)
        axis.set_xlabel(label)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("greedy success on 200 test prompts, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def _with(rows: Sequence[dict[str, Any]], **values: object) -> list[dict[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def _curves(axis: Any, rows: Sequence[dict[str, Any]], key: str, ours: str) -> None:
    """Each arm's mean, and the values of all seeds."""
    for arm, colour in ((ZERO, "#999999"), (SFT_RL, "#D55E00"), (ours, "#0072B2")):
        own = _with(rows, arm=arm)
        at = sorted({row[key] for row in own})
        if at:
            means = [fmean(100 * row["score"] for row in own if row[key] == place) for place in at]
            axis.plot(at, means, "-", color=colour, label=arm)
            axis.plot([row[key] for row in own], [100 * row["score"] for row in own], "o", color=colour, alpha=0.4)
    places = sorted({row[key] for row in rows})
    if key == "traces":
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(places, [str(place) for place in places])
