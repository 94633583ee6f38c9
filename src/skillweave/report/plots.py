"""Bars that all reports draw, and the plots of a build's. A plot is a figure; writing it is the caller's."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from skillweave.report.escape import label_text

# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = {"base": "#999999", "specialist": "#0072B2", "pack": "#E69F00", "routed": "#009E73"}


def skills_plot(skills: dict[str, dict[str, Any]]) -> Figure:
    """Per skill: base, specialist, pack and routed weave as bars with 95% intervals."""
    figure = Figure(figsize=(max(5.0, 2.2 * len(skills)), 3.4), layout="constrained")
    axes = figure.subplots()
    draw_bars(axes, skills, COLOURS, intervals=[skill["intervals"] for skill in skills.values()])
    axes.set_ylabel("score on test prompts, %")
    return figure


def draw_bars(
    axes: Axes, groups: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str],
    intervals: Sequence[Mapping[str, Sequence[float]]] | None = None,
) -> None:  # fmt: skip
    """Bars side by side in named groups, a colour each; shares are drawn in percent.

    ``groups`` hold a height for each name in ``colours``; one that is None or missing leaves its place empty.
    ``intervals``: for each group the ends of each bar's interval.
    """
    width = 0.8 / len(colours)
    for offset, (arm, colour) in enumerate(colours.items()):
        shown = [(place, group) for place, group in enumerate(groups.values()) if group.get(arm) is not None]
        means = [100 * group[arm] for _, group in shown]
        places = [place + (offset - (len(colours) - 1) / 2) * width for place, _ in shown]
        axes.bar(places, means, width * 0.92, color=colour, label=arm)
        if intervals is None:
            continue
        ends = [intervals[place][arm] for place, _ in shown]
        # Not below 0: where all scores are equal, rounding may put an end a hair on the wrong side of the mean.
        lows = [max(0.0, mean - 100 * low) for mean, (low, _) in zip(means, ends, strict=True)]
        highs = [max(0.0, 100 * high - mean) for mean, (_, high) in zip(means, ends, strict=True)]
        axes.errorbar(places, means, yerr=[lows, highs], fmt="none", ecolor="#333333", capsize=2, linewidth=0.8)
    axes.set_xticks(range(len(groups)), list(map(label_text, groups)))
    axes.set_ylim(0, 105)
    axes.legend(ncols=len(colours), fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)


def memory_plot(memory: dict[str, int]) -> Figure:
    """Bytes in memory: the base alone, the weave, as many separate models as there are skills."""
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
    """The router's confusion matrix: rows what a prompt was, columns where it went, shares of each row."""
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


def svg_text(figure: Figure) -> str:
    """The figure as an ``<svg>`` element, the same text each time it is drawn."""
    buffer = io.StringIO()
    for part in figure.findobj(lambda part: isinstance(part, Text)):
        part.set(parse_math=False)  # a "$" in a name is a letter, not the beginning of a formula
    # Without a salt its ids would be random. Labels of ticks are made while it is drawn.
    with rc_context({"svg.hashsalt": "skillweave", "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # an emoji: a box stands in its place
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
