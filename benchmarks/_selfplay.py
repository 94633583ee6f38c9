"""What both scales of the TPAW benchmark share: the arms, one run's curves, and how rows are judged and shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _record import Claim, judged, student
from skillweave.report import Table

SFT, SPIN, TSPIN, DPO, TPAW = "continued SFT", "SPIN", "T-SPIN", "DPO", "TPAW"
ARMS: dict[str, dict[str, Any]] = {
    SFT: {"loss": "sft"},
    SPIN: {"loss": "spin"},
    TSPIN: {"loss": "tspin"},
    DPO: {"loss": "dpo", "samples_per_prompt": 4},
    TPAW: {"loss": "team"},
}
CUT: dict[str, dict[str, Any]] = {
    "TPAW, no team": {"loss": "team", "team": 1, "generations": 1},
    "TPAW, no alpha": {"loss": "team", "eta": 1.0},
    "TPAW, no beta": {"loss": "team", "gamma": 0.0},
}
COMPUTE, ROUNDS, GRID = "equal compute", "equal rounds", "tuning"
COLOURS = {SFT: "#999999", SPIN: "#0072B2", TSPIN: "#56B4E9", DPO: "#009E73", TPAW: "#D55E00"}
_SIDES = {"sft": 1, "tspin": 3}  # sequences of a row; the other losses have two


def equal_steps(arm: str, steps: int) -> int:
    """Steps of an arm that train on as many sequences as ``steps`` steps over pairs."""
    return steps * 2 // _SIDES.get({**ARMS, **CUT}[arm]["loss"], 2)


def curves(stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A run's figures by round: of the held-out prompts with the start first, of the training from round 1 on."""
    played = [stages[f"round-{at}"] for at in range(1, len(stages)) if f"round-{at}" in stages]
    judged_ = [stages[f"held-out-{at}"] for at in range(len(stages)) if f"held-out-{at}" in stages]
    found: dict[str, Any] = {
        key: [each.get(key, 0.0) for each in judged_] for key in ("score", "log_prob", "kl_to_start")
    }
    for key in ("margin", "target_reward", "generated_reward", "generated_score", "kept", "steps", "tokens"):
        found[key] = [each.get(key) for each in played]
    return {**found, "seconds": sum(stage["seconds"] for stage in stages.values())}


def last(row: dict[str, Any]) -> float:
    """The score after the last round."""
    return row["score"][-1]


def differences(rows: Sequence[dict[str, Any]], one: str, other: str, **where: Any) -> list[float]:
    """Last score of one arm less that of another, seed by seed, in points of 100."""
    found = {
        arm: {row["seed"]: 100 * last(row) for row in rows if row["arm"] == arm and _fits(row, where)}
        for arm in (one, other)
    }
    return [found[one][seed] - found[other][seed] for seed in sorted(found[one]) if seed in found[other]]


def ahead(rows: Sequence[dict[str, Any]], other: str, **where: Any) -> Claim:
    """The claim that TPAW ends above another arm."""
    values = differences(rows, TPAW, other, **where)
    place = ", ".join(str(value) for value in where.values())
    return judged(f"{place}: TPAW's last score less that of {other}, points", *student(values), "> 0")


def steadier(tried: Sequence[dict[str, Any]], task: str) -> Claim:
    """The claim that TPAW bears a poor choice: its mean lead over SPIN at the same learning rate and lam, over all."""
    found = {
        arm: {
            (row["learning_rate"], row["lam"], row["seed"]): 100 * last(row)
            for row in tried
            if (row["task"], row["arm"]) == (task, arm)
        }
        for arm in (TPAW, SPIN)
    }
    values = [found[TPAW][key] - found[SPIN][key] for key in found[TPAW]]
    return judged(f"{task}, mean over learning rates and lams: TPAW's last score less SPIN's", *student(values), "> 0")


def rises(rows: Sequence[dict[str, Any]], **where: Any) -> Claim:
    """The claim that TPAW does not fall back: the last round stands above the first."""
    values = [100 * (last(row) - row["score"][1]) for row in rows if row["arm"] == TPAW and _fits(row, where)]
    place = ", ".join(str(value) for value in where.values())
    return judged(
        f"{place}: TPAW's score after the last round less that after the first, points", *student(values), "> 0"
    )


def _fits(row: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(row[key] == value for key, value in where.items())


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line an arm: means over seeds, with the interval of the last score."""
    header = [
        "task, comparison, arm", "rate", "lam", "start", "after 1", "best round", "last", "95% interval", "gap first",
        "gap last", "KL last", "tokens (k)", "seconds",
    ]  # fmt: skip
    lines = []
    for key in dict.fromkeys((row["task"], row["comparison"], row["arm"]) for row in rows):
        group = [row for row in rows if (row["task"], row["comparison"], row["arm"]) == key]
        mean, low, high = student([100 * last(row) for row in group])
        gaps = [
            f"{statistics.fmean(row['margin'][at] for row in group):.2f}" if group[0]["margin"][0] else "-"
            for at in (0, -1)
        ]
        lines.append([
            ", ".join(key), f"{group[0]['learning_rate']:g}", f"{group[0]['lam']:g}",
            *(f"{100 * statistics.fmean(row['score'][at] for row in group):.1f}" for at in (0, 1)),
            f"{100 * statistics.fmean(max(row['score'][1:]) for row in group):.1f}",
            f"{mean:.1f}", f"{low:.1f} to {high:.1f}", *gaps,
            f"{statistics.fmean(row['kl_to_start'][-1] for row in group):.2f}",
            f"{statistics.fmean(sum(row['tokens']) for row in group) / 1000:.0f}",
            f"{statistics.fmean(row['seconds'] for row in group):.0f}",
        ])  # fmt: skip
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Score and gap over the rounds at equal compute, a column a task; bands are 95% intervals over seeds."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(4.6 * len(tasks) + 0.6, 6.4), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        for arm, colour in COLOURS.items():
            group = [r for r in rows if (r["task"], r["comparison"], r["arm"]) == (task, COMPUTE, arm)]
            if not group:
                continue
            _band(axes[0][column], 0, [[100 * value for value in row["score"]] for row in group], colour, arm)
            if arm != SFT:
                _band(axes[1][column], 1, [row["margin"] for row in group], colour, arm)
        axes[0][column].set_title(f"{task}, {COMPUTE}")
        axes[0][column].set_ylabel("score on held-out prompts, %")
        axes[1][column].set_ylabel("gap: reward of target less generation")
        axes[1][column].set_yscale("log")
        for row in (0, 1):
            axes[row][column].set_xlabel("round")
            axes[row][column].spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=8, frameon=False)
    return figure


def _band(axes: Any, first: int, curves_: list[list[float]], colour: str, label: str) -> None:
    places = range(first, first + min(map(len, curves_)))
    marks = np.array([student([curve[at] for curve in curves_]) for at in range(len(places))])
    axes.plot(places, marks[:, 0], color=colour, label=label, marker="o", markersize=3)
    axes.set_xticks(list(places))
    if len(curves_) > 1:
        axes.fill_between(places, np.maximum(marks[:, 1], 1e-3), marks[:, 2], color=colour, alpha=0.15, linewidth=0)
