"""The arms of the TPAW benchmark, the curves of a run, the claims, and the table and plot of both scales."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, judged, student
from skillweave.report import Table

SFT = "continued SFT"
REJECTION = "rejection-sampled SFT"
SPIN = "SPIN"
TSPIN = "T-SPIN"
DPO = "DPO"
TPAW = "TPAW"
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
SETTINGS: dict[str, dict[str, Any]] = {**ARMS, REJECTION: {"loss": "sft"}, **CUT}
"""All arms, also those that only one of the comparisons has."""
COMPUTE = "equal compute"
ROUNDS = "equal rounds"
HARSH = "rate too high (not tuned)"
GRID = "tuning"
COLOURS = {SFT: "#999999", REJECTION: "#CC79A7", SPIN: "#0072B2", TSPIN: "#56B4E9", DPO: "#009E73", TPAW: "#D55E00"}
_SIDES = {"sft": 1, "tspin": 3}  # sequences in a row of data; the other losses have two


def equal_steps(arm: str, steps: int) -> int:
    """Steps of an arm that train on as many sequences as ``steps`` steps over pairs."""
    return steps * 2 // _SIDES.get(SETTINGS[arm]["loss"], 2)


def curves(stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A run's figures by round: those of held-out prompts begin with the start, those of training with round 1.

    A round without any pair ends the run and has no training figures. KL is None if no answer ended.
    """
    played = [stages[name] for name in stages if name.startswith("round-") and stages[name]["steps"]]
    held = [stages[name] for name in stages if name.startswith("held-out-")]
    found: dict[str, Any] = {key: [each[key] for each in held] for key in ("score", "log_prob")}
    found["kl_to_start"] = [0.0, *(each.get("kl_to_start") for each in held[1:])]
    for key in ("margin", "target_reward", "generated_reward", "generated_score", "kept", "steps", "tokens"):
        found[key] = [each.get(key) for each in played]
    return {**found, "seconds": sum(stage["seconds"] for stage in stages.values())}


def last(row: dict[str, Any]) -> float:
    """The score after the last round."""
    return row["score"][-1]


def differences(rows: Sequence[dict[str, Any]], one: str, other: str, **where: Any) -> list[float]:
    """Last score of one arm minus that of another, seed by seed, in points of 100."""
    found = {
        arm: {row["seed"]: 100 * last(row) for row in rows if row["arm"] == arm and _fits(row, where)}
        for arm in (one, other)
    }
    return [found[one][seed] - found[other][seed] for seed in sorted(found[one]) if seed in found[other]]


def ahead(rows: Sequence[dict[str, Any]], other: str, **where: Any) -> Claim:
    """The claim that TPAW ends above another arm."""
    values = differences(rows, TPAW, other, **where)
    return judged(f"{_place(where)}: TPAW's last score less that of {other}, points", *student(values), "> 0")


def rises(rows: Sequence[dict[str, Any]], **where: Any) -> Claim:
    """The claim that TPAW does not fall back: the last round scores above the first."""
    values = [100 * (last(row) - row["score"][1]) for row in rows if row["arm"] == TPAW and _fits(row, where)]
    return judged(
        f"{_place(where)}: TPAW's score after the last round less that after the first", *student(values), "> 0"
    )


def keeps_its_gap(rows: Sequence[dict[str, Any]], **where: Any) -> Claim:
    """The claim that TPAW's gap shrinks less than SPIN's: the last round's gap as a share of the first round's."""
    left = {
        arm: {
            row["seed"]: row["margin"][-1] / row["margin"][0] for row in rows if row["arm"] == arm and _fits(row, where)
        }
        for arm in (TPAW, SPIN)
    }
    values = [left[TPAW][seed] - left[SPIN][seed] for seed in left[TPAW]]
    return judged(f"{_place(where)}: share of its first gap that TPAW keeps, less SPIN's", *student(values), "> 0")


def _place(where: dict[str, Any]) -> str:
    return ", ".join(str(value) for value in where.values())


def _fits(row: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(row[key] == value for key, value in where.items())


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table with one line for each arm: means over seeds, the gain with its interval, the last rewards in nats."""
    header = [
        "task, comparison, arm",
        "rate",
        "lam",
        "start",
        "after 1",
        "last",
        "gained",
        "target, nats",
        "gap, first to last",
        "of it targets",
        "generations",
        "KL",
        "tokens (k)",
        "seconds",
    ]
    lines = []
    for key in dict.fromkeys((row["task"], row["comparison"], row["arm"]) for row in rows):
        group = [row for row in rows if (row["task"], row["comparison"], row["arm"]) == key]
        gained, low, high = student([100 * (last(row) - row["score"][0]) for row in group])
        interval = f" ({low:+.1f} to {high:+.1f})" if len(group) > 1 else ""
        lam = group[0]["lam"]

        def mean(name: str, at: int, scale: float = 1.0, group: list[dict[str, Any]] = group) -> float:
            return statistics.fmean(row[name][at] for row in group) * scale

        plays = key[2] != SFT
        rewards = [
            f"{mean(name, -1, 1 / lam):+.2f}" if plays else "-" for name in ("target_reward", "generated_reward")
        ]
        lines.append(
            [
                ", ".join(key),
                f"{group[0]['learning_rate']:g}",
                f"{lam:g}" if plays else "-",
                *(f"{mean('score', at, 100):.1f}" for at in (0, 1, -1)),
                f"{gained:+.1f}{interval}",
                f"{mean('log_prob', 0):.2f} to {mean('log_prob', -1):.2f}",
                f"{mean('margin', 0, 1 / lam):.2f} to {mean('margin', -1, 1 / lam):.2f}" if plays else "-",
                *rewards,
                _kl(group),
                f"{statistics.fmean(sum(row['tokens']) for row in group) / 1000:.0f}",
                f"{statistics.fmean(row['seconds'] for row in group):.0f}",
            ]
        )
    return Table(header, lines)


def _kl(group: Sequence[dict[str, Any]]) -> str:
    known = [row["kl_to_start"][-1] for row in group if row["kl_to_start"][-1] is not None]
    return f"{statistics.fmean(known):.2f}" if known else "-"


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of score gained and gap over the rounds, for each task and comparison, with 95% bands over seeds."""
    columns = list(dict.fromkeys((row["task"], row["comparison"]) for row in rows))
    figure = Figure(figsize=(3.6 * len(columns) + 0.6, 6.4), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False, sharey="row")
    for column, key in enumerate(columns):
        for arm, colour in COLOURS.items():
            group = [row for row in rows if (row["task"], row["comparison"], row["arm"]) == (*key, arm)]
            if not group:
                continue
            gained = [[100 * (value - row["score"][0]) for value in row["score"]] for row in group]
            _band(axes[0][column], 0, gained, colour, arm)
            if arm != SFT:
                scaled = [[value / row["lam"] for value in row["margin"]] for row in group]
                _band(axes[1][column], 1, scaled, colour, arm)
        axes[0][column].set_title(", ".join(key), fontsize=10)
        axes[1][column].set_yscale("symlog", linthresh=0.1)
        for row in (0, 1):
            axes[row][column].set_xlabel("round")
            axes[row][column].spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("held-out score gained, points")
    axes[1][0].set_ylabel("gap against the newest player, nats")
    axes[0][0].legend(fontsize=8, frameon=False)
    return figure


def _band(axes: Any, first: int, curves_: list[list[float]], colour: str, label: str) -> None:
    places = range(first, first + min(map(len, curves_)))
    band(axes, places, [[curve[at] for curve in curves_] for at in range(len(places))], colour, label)
    axes.set_xticks(list(places))


def band(axes: Any, places: Sequence[float], values: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """Draw the means of the values at each place, with a 95% band if there are several."""
    marks = np.array([student(each) for each in values])
    axes.plot(places, marks[:, 0], color=colour, label=label, marker="o", markersize=3)
    if min(map(len, values)) > 1:
        axes.fill_between(places, marks[:, 1], marks[:, 2], color=colour, alpha=0.15, linewidth=0)
