"""Tables and plots of the E3-TIR benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import student
from benchmarks.e3tir.arms import ARMS, E3, FAMILIES, LUFFY, SFT_RL, SFT_RL_FEW, ZERO
from skillweave.report import Table

COLOURS = {ZERO: "#999999", SFT_RL: "#D55E00", SFT_RL_FEW: "#E69F00", LUFFY: "#56B4E9", E3: "#0072B2"}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table with one line for each arm: means over seeds with intervals, and the ROI with its two terms."""
    header = [
        "family, arm",
        "before",
        "score",
        "on the way",
        "expert tokens",
        "policy tokens",
        "score / SFT -> RL",
        "tokens of SFT -> RL / own",
        "ROI",
        "joined",
        "entropy at the end",
        "seconds",
    ]
    lines = []
    for family in FAMILIES:
        for arm in ARMS:
            group = select(rows, family, arm)
            if group:
                lines.append(_line(family, arm, group, select(rows, family, SFT_RL)))
    return Table(header, lines)


def _line(family: str, arm: str, group: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[str]:
    gain, cost = roi_terms(group, baseline)
    return [
        f"{family}, {arm}",
        _mean(group, "before", 100, ".1f"),
        _interval(group, "score"),
        _interval(group, "mean_on_the_way"),
        _mean(group, "expert_tokens", 1, ",.0f"),
        _mean(group, "sampled_tokens", 1, ",.0f"),
        _shown(gain),
        _shown(cost),
        _shown(None if gain is None or cost is None else gain * cost),
        _mean(group, "joined", 1, ".2f"),
        _mean(group, "entropy", 1, ".2f"),
        _mean(group, "seconds", 1, ".0f"),
    ]


def roi_terms(group: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> tuple[float | None, float | None]:
    """(score / baseline's score), (baseline's tokens / own tokens): means over seeds; their product is the ROI."""
    if not baseline or not (score := fmean(row["score"] for row in baseline)):
        return None, None
    tokens = [fmean(row["expert_tokens"] + row["sampled_tokens"] for row in of) for of in (baseline, group)]
    return fmean(row["score"] for row in group) / score, tokens[0] / tokens[1] if tokens[1] else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mean(group: Sequence[dict[str, Any]], key: str, scale: float, form: str) -> str:
    known = [scale * row[key] for row in group if row[key] is not None]
    return format(fmean(known), form) if known else "-"


def _interval(group: Sequence[dict[str, Any]], key: str) -> str:
    mean, low, high = student([100 * row[key] for row in group])
    return f"{mean:.1f} ({low:.1f} to {high:.1f})" if len(group) > 1 else f"{mean:.1f}"


def select(rows: Sequence[dict[str, Any]], family: str, arm: str) -> list[dict[str, Any]]:
    """The runs of an arm on a family."""
    return [row for row in rows if (row["family"], row["arm"]) == (family, arm)]


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Success against the tokens that the policy wrote: the mean over seeds, and the range of all seeds."""
    families = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    figure = Figure(figsize=(4 * len(families) + 1.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axis, family in zip(axes, families, strict=True):
        for arm, colour in COLOURS.items():
            group = select(rows, family, arm)
            if group:
                at = np.linspace(0, group[0]["budget"], 60)
                curves = np.array([100 * np.interp(at, *zip(*row["curve"], strict=True)) for row in group])
                axis.plot(at / 1000, curves.mean(axis=0), color=colour, label=arm)
                axis.fill_between(at / 1000, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.12)
        axis.set_title(family, fontsize=10)
        axis.set_xlabel("tokens written by the policy, thousands")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("success on held-out prompts, %")
    # Not every arm is in every panel; the first has all of them.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure
