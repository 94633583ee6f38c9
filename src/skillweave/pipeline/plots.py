"""The plots of a build's report. Each function returns a figure; the caller writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from skillweave.report.escape import label_text
from skillweave.report.plots import draw_bars

# Colours that colour-blind people can tell apart (Okabe and Ito).
COLOURS = {"base": "#999999", "specialist": "#0072B2", "pack": "#E69F00", "routed": "#009E73"}


def skills_plot(skills: dict[str, dict[str, Any]]) -> Figure:
    """Scores of base, specialist, pack and routed weave for each skill, as bars with 95% intervals."""
    figure = Figure(figsize=(max(5.0, 2.2 * len(skills)), 3.4), layout="constrained")
    axes = figure.subplots()
    draw_bars(axes, skills, COLOURS, intervals=[skill["intervals"] for skill in skills.values()])
    axes.set_ylabel("score on test prompts, %")
    return figure


def memory_plot(memory: dict[str, int]) -> Figure:
    """Bytes in memory of the base alone, of the weave, and of one separate model per skill."""
    figure = Figure(figsize=(5, 2.0), layout="constrained")
    axes = figure.subplots()
    bars = {"base alone": "base_bytes", "weave": "weave_bytes", "separate models": "separate_bytes"}
    values = [memory[key] / 1e6 for key in bars.values()]
    drawn = axes.barh(list(bars), values, color=["#999999", "#009E73", "#0072B2"])
    axes.bar_label(drawn, [f"{value:.0f} MB" for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.18)
    axes.set_xlabel("weights in memory, MB")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion_plot(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """The router's confusion matrix: the rows are the prompts' tasks, the columns where they were routed to.

    Cells show counts; their colour is the share of the row.
    """
    figure = Figure(figsize=(1.6 + 0.8 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            axes.text(x, y, str(count), ha="center", va="center", color="white" if shares[y][x] > 0.5 else "black")
    axes.set_xticks(range(len(columns)), list(map(label_text, columns)), rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), list(map(label_text, rows)))
    axes.set_xlabel("routed to")
    axes.set_ylabel("prompts of")
    return figure
