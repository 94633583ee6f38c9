"""Tables and plots of the unlearning benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.cku.arms import LOSSES, MASKS, beside, reached, select
from benchmarks.common.record import student
from skillweave.report import Table

_SHADES = ["#FDD0A2", "#FDAE6B", "#FD8D3C", "#E6550D", "#A63603"]
COLOURS = dict(zip(MASKS, ["#999999", "#56B4E9", "#CC79A7", *_SHADES, "#0072B2", "#009E73"], strict=True))
_KEYS = ("comparison", "loss", "mask", "ratio", "layers")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table with one line for each arm: means over seeds, with intervals for "beside" and "back"."""
    header = [
        "comparison, loss, mask",
        "frozen",
        "layers",
        "rate",
        "mu",
        "steps",
        "reached",
        "forget",
        "retain",
        "beside",
        "skill",
        "back: relearning",
        "unrelated",
        "8 bits",
        "4 bits",
        "retain at 4 bits",
        "R and Q",
        "forget quality",
        "membership",
    ]
    lines = []
    for group in _groups(rows):
        first = group[0]
        lines.append(
            [
                ", ".join(first[key] for key in _KEYS[:3]),
                "-" if MASKS[first["mask"]].get("freeze") == "none" else f"{first['ratio']:.0%}",
                _layers(first["layers"]),
                f"{first['rate']:g}",
                f"{first['mu']:g}",
                f"{fmean(row['steps_taken'] for row in group):.0f}",
                f"{sum(map(reached, group))} of {len(group)}",
                _percent(group, "forget"),
                _percent(group, "retain"),
                _interval([beside(row) for row in group]),
                f"{_percent(group, 'skill')} of {_percent(group, 'skill_before')}",
                _interval([100 * row["relearnt"] for row in group if row["relearnt"] is not None]),
                *(_percent(group, key) for key in ("unrelated", "rounded_8", "rounded_4")),
                f"{_percent(group, 'retain_at_4')} of {_percent(group, 'retain_at_4_before')}",
                f"{fmean(row['robustness'] for row in group):.2f}",
                f"{np.median([row['forget_quality'] for row in group]):.2g}",
                f"{fmean(row['membership'] for row in group):.2f}",
            ]
        )
    return Table(header, lines)


def _groups(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[key]) for key in _KEYS), []).append(row)
    return list(found.values())


def _layers(layers: Any) -> str:
    return layers if isinstance(layers, str) else ", ".join(map(str, layers))


def _percent(group: Sequence[dict[str, Any]], key: str) -> str:
    known = [100 * row[key] for row in group if row[key] is not None]
    return f"{fmean(known):.1f}" if known else "-"


def _interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, low, high = student(values)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})" if len(values) > 1 else f"{mean:.1f}"


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure by loss and mask, with intervals over seeds: above what is kept, below what relearning brings back.

    A marker is hollow if the forget set was not forgotten on every seed: a model that forgets less also keeps more.
    """
    arms = select(rows, comparison="arms")
    losses = [loss for loss in LOSSES if select(arms, loss=loss)]
    figure = Figure(figsize=(max(6.0, 2.1 * len(losses)), 6.2), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    shown = {mask: colour for mask, colour in COLOURS.items() if select(arms, mask=mask)}
    width = 0.86 / len(shown)
    for offset, (mask, colour) in enumerate(shown.items()):
        for place, loss in enumerate(losses):
            group = select(arms, loss=loss, mask=mask)
            back = [100 * row["relearnt"] for row in group if row["relearnt"] is not None]
            at = place + (offset - (len(shown) - 1) / 2) * width
            for axis, values in ((axes[0], [beside(row) for row in group]), (axes[1], back)):
                if values:
                    mean, _, high = student(values)
                    half = high - mean if len(values) > 1 else 0.0
                    filled = colour if all(map(reached, group)) else "none"
                    axis.bar(at, mean, width * 0.92, color=filled, edgecolor=colour)
                    axis.errorbar(at, mean, yerr=half, color="#333333", capsize=1.5, linewidth=0.7)
    axes[0].set_ylabel("kept beside, %")
    axes[1].set_ylabel("relearning brings back, %")
    axes[1].set_xticks(range(len(losses)), losses)
    patches = [Patch(color=colour, label=mask) for mask, colour in shown.items()]
    axes[0].legend(handles=patches, ncols=5, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axis in axes:
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.spines[["top", "right"]].set_visible(False)
    return figure
