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
    """Score against the number of traces, with hidden calls and without, and against the share of hidden calls."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    most = max((row["batches"] for row in rows), default=0)
    whole = [row for row in rows if row["longest"] == LENGTH and row["batches"] == most]
    for axis, hidden in zip(axes, (1.0, 0.0), strict=False):
        _curve(axis, [row for row in whole if row["hidden"] == hidden], "traces", ours)
        axis.set(xscale="log", xlabel="expert traces", title=f"{hidden:.0%} of the experts' calls hidden")
        counts = sorted({row["traces"] for row in whole})
        axis.set_xticks(counts, [str(count) for count in counts], minor=False)
        axis.minorticks_off()
    _curve(axes[2], [row for row in whole if row["traces"] == 16], "hidden", ours)
    axes[2].set(xlabel="share of the experts' calls that are hidden", title="16 traces")
    axes[0].set_ylabel("greedy success on 200 test prompts, %")
    axes[0].legend(fontsize=8, frameon=False)
    for axis in axes:
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _curve(axis: Any, rows: Sequence[dict[str, Any]], key: str, ours: str) -> None:
    for arm, colour in ((SFT_RL, "#D55E00"), (ours, "#0072B2")):
        own = [row for row in rows if row["arm"] == arm]
        at = sorted({row[key] for row in own})
        if at:
            groups = [[100 * row["score"] for row in own if row[key] == place] for place in at]
            axis.plot(at, [fmean(group) for group in groups], "o-", color=colour, label=arm)
            axis.fill_between(
                at, [min(group) for group in groups], [max(group) for group in groups], color=colour, alpha=0.12
            )
    zero = [100 * row["score"] for row in rows if row["arm"] == ZERO]
    if zero:
        axis.axhline(fmean(zero), color="#999999", linestyle=":", label=ZERO)
