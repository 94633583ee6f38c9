"""The claims, the table and the plot of self-play from a converged start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, judged, student
from benchmarks.tpaw.arms import COLOURS, DPO, SETTINGS, SFT, SPIN, TPAW, band, last
from skillweave.report import Table

Rows = Sequence[dict[str, Any]]
BY_RATE = (SFT, SPIN, DPO, TPAW)
"""The arms that play at all rates, and on data of which a part is wrong."""
PUBLISHED = (1 / 40, 1 / 20)
"""The published rates of the play, as shares of the supervised rate."""


def split(rows: Rows) -> tuple[Rows, Rows]:
    """The rows of the comparison, and those that repeat a part of it on seeds of their own."""
    return [row for row in rows if not row["fresh"]], [row for row in rows if row["fresh"]]


def played(rows: Rows, arm: str, bad: float = 0.0) -> list[dict[str, Any]]:
    """The rows of an arm at its tuned rate."""
    return [row for row in rows if row["arm"] == arm and row["bad"] == bad and row["tuned"]]


def paired(one: Rows, other: Rows, figure: Callable[[dict[str, Any]], float]) -> list[float]:
    """A figure of one arm less that of another, seed by seed."""
    found = {row["seed"]: figure(row) for row in other}
    return [figure(row) - found[row["seed"]] for row in one if row["seed"] in found]


def points(row: dict[str, Any]) -> float:
    """The last score in points of 100."""
    return 100 * last(row)


def gained(row: dict[str, Any], key: str = "score") -> float:
    """How much a figure has grown over all rounds."""
    return row[key][-1] - row[key][0]


def below_its_best(rows: Rows) -> list[float]:
    """By how many points the last score is below that of the round with the best mean, seed by seed."""
    means = [fmean(row["score"][number] for row in rows) for number in range(len(rows[0]["score"]))]
    best = max(range(len(means)), key=means.__getitem__)
    return [100 * (row["score"][best] - last(row)) for row in rows]


def claims(rows: Rows) -> list[Claim]:
    """All claims for which there are rows."""
    found: list[Claim] = []
    rows, fresh = split(rows)
    for bad in dict.fromkeys(row["bad"] for row in rows):
        where = f"{bad:.0%} of the answers wrong: " if bad else ""
        team = played(rows, TPAW, bad)
        if not team:
            continue
        found.append(
            a_point_ahead(
                f"{where}TPAW's last score less SPIN's, points", paired(team, played(rows, SPIN, bad), points)
            )
        )
        found += [
            judged(f"{where}TPAW's last score less that of {other}, points", *student(values), "> 0")
            for other in SETTINGS
            if other not in (TPAW, SPIN) and (values := paired(team, played(rows, other, bad), points))
        ]
        found.append(half_a_point_below(f"{where}TPAW's best score less its last, points", below_its_best(team)))
        for arm, goal in ((TPAW, ">= 0"), (SPIN, "< 0")):
            mine = played(rows, arm, bad)
            for key, name in (("target", "training targets"), ("held_out", "held-out targets")):
                if mine:
                    values = [gained(row, key) for row in mine]
                    found.append(
                        judged(f"{where}{arm}: log-probability of {name}, nats gained", *student(values), goal)
                    )
        for arm, goal in ((SFT, "<= 1"), (TPAW, "> 0")):
            if mine := played(rows, arm, bad):
                values = [100 * gained(row) for row in mine]
                found.append(judged(f"{where}{arm}: points gained over the start", *student(values), goal))
    start = next((row["rate"] for row in rows if row["arm"] is None), 0.0)
    for share in PUBLISHED:
        where = f"at 1/{1 / share:.0f} of the start's rate"
        found += _at_rate(where, rows, start * share)
        found += _at_rate(f"{where}, on fresh seeds", fresh, start * share)
    return found


def _at_rate(where: str, rows: Rows, rate: float) -> list[Claim]:
    """TPAW against SPIN at one of the published rates, if it was played."""
    both = [[row for row in rows if (row["arm"], row["rate"], row["bad"]) == (arm, rate, 0.0)] for arm in (TPAW, SPIN)]
    values = paired(*both, points)
    return [a_point_ahead(f"{where}: TPAW's last score less SPIN's, points", values)] if values else []


def a_point_ahead(claim: str, values: Sequence[float]) -> Claim:
    """A claim of at least one point, with an interval clear of zero."""
    value, low, high = student(values)
    return Claim(claim, value, low, high, ">= 1, interval above 0", value >= 1 and low > 0)


def half_a_point_below(claim: str, values: Sequence[float]) -> Claim:
    """A claim of at most half a point, in the mean over seeds."""
    value, low, high = student(values)
    return Claim(claim, value, low, high, "<= 0.5 in the mean", round(value, 9) <= 0.5)


# -- the table -------------------------------------------------------------------------------------------------------


def table(rows: Rows) -> Table:
    """A line for each start, each arm at its tuned rate, and each arm at each rate, with means over seeds."""
    header = [
        "answers wrong, arm",
        "rate",
        "seeds",
        "start",
        "score after rounds 0 to 4",
        "gained",
        "targets, nats",
        "held-out targets",
        "start's own answers",
        "drawn right, first and last",
        "pairs left",
        "CPU s",
    ]
    lines = []
    rows, fresh = split(rows)
    for bad in dict.fromkeys(row["bad"] for row in rows):
        here = [row for row in rows if row["bad"] == bad]
        if starts := [row for row in here if row["arm"] is None]:
            lines.append(_start_line(starts))
        for arm in dict.fromkeys(row["arm"] for row in here if row["tuned"]):
            lines.append(_line(f"{bad:.0%}, {arm}", played(rows, arm, bad)))
    for arm in SETTINGS:
        mine = [row for row in rows if row["arm"] == arm and not row["bad"]]
        ladder = sorted({row["rate"] for row in mine})
        for rate in ladder if len(ladder) > 1 else ():
            lines.append(_line(f"by rate: {arm}", [row for row in mine if row["rate"] == rate]))
    for arm, rate in dict.fromkeys((row["arm"], row["rate"]) for row in fresh):
        lines.append(_line(f"fresh seeds: {arm}", [row for row in fresh if (row["arm"], row["rate"]) == (arm, rate)]))
    return Table(header, lines)


def _start_line(group: Rows) -> list[str]:
    curve = [
        f"{steps}: {100 * fmean(row['curve'][at][1] for row in group):.1f}"
        for at, (steps, _) in enumerate(group[0]["curve"])
    ]
    return [
        f"{group[0]['bad']:.0%}, SFT by steps ({', '.join(curve)}); the base; four times the pairs",
        f"{group[0]['rate']:g}",
        str(len(group)),
        f"{100 * fmean(row['base'] for row in group):.1f}",
        f"{100 * fmean(row['four_times'] for row in group):.1f}",
        *["-"] * 6,
        f"{fmean(row['seconds'] for row in group):.0f}",
    ]


def _line(name: str, group: Rows) -> list[str]:
    def ends(key: str, scale: float = 1.0) -> str:
        return " to ".join(f"{scale * fmean(row[key][at] for row in group):.2f}".removesuffix(".00") for at in (0, -1))

    value, low, high = student([100 * gained(row) for row in group])
    interval = f" ({low:+.1f} to {high:+.1f})" if len(group) > 1 else ""
    rounds = range(1, len(group[0]["score"]))
    return [
        name,
        f"{group[0]['rate']:g}",
        str(len(group)),
        f"{100 * fmean(row['score'][0] for row in group):.1f}",
        ", ".join(f"{100 * fmean(row['score'][at] for row in group):.1f}" for at in rounds),
        f"{value:+.1f}{interval}",
        ends("target"),
        ends("held_out"),
        ends("generated"),
        ends("generated_score", 100),
        ends("left", 100),
        f"{fmean(row['seconds'] for row in group):.0f}",
    ]


# -- the plot --------------------------------------------------------------------------------------------------------


def plot(rows: Rows) -> Figure:
    """Score by round on clean and on partly wrong data; the last score and the targets by learning rate."""
    rows, _ = split(rows)
    figure = Figure(figsize=(14.0, 3.8), layout="constrained")
    clean, spoilt, scores, targets = figure.subplots(1, 4)
    _by_round(clean, rows, 0.0)
    clean.set(title="tuned", ylabel="held-out score gained, points")
    _by_round(spoilt, rows, max(row["bad"] for row in rows))
    spoilt.set(title="a part of the answers wrong", ylabel="held-out score gained, points")
    _by_rate(scores, rows, lambda row: 100 * gained(row))
    scores.set_yscale("symlog", linthresh=2)
    scores.set(title="by learning rate", ylabel="held-out score gained, points")
    _by_rate(targets, rows, lambda row: gained(row, "target"))
    targets.set_yscale("symlog", linthresh=0.1)
    targets.set(title="by learning rate", ylabel="log-probability of targets gained, nats")
    for axes in (clean, spoilt, scores, targets):
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    clean.legend(fontsize=7, frameon=False)
    return figure


def _by_round(axes: Axes, rows: Rows, bad: float) -> None:
    for arm, colour in COLOURS.items():
        if group := played(rows, arm, bad):
            numbers = range(len(group[0]["score"]))
            marks = [[100 * (row["score"][at] - row["score"][0]) for row in group] for at in numbers]
            band(axes, numbers, marks, colour, arm)
    axes.set_xlabel("rounds played")


def _by_rate(axes: Axes, rows: Rows, figure: Callable[[dict[str, Any]], float]) -> None:
    for arm in BY_RATE:
        mine = [row for row in rows if row["arm"] == arm and not row["bad"]]
        if ladder := sorted({row["rate"] for row in mine}):
            marks = [[figure(row) for row in mine if row["rate"] == rate] for rate in ladder]
            band(axes, ladder, marks, COLOURS[arm], arm)
    axes.set(xlabel="learning rate", xscale="log")
    axes.set_xticks([1e-5, 1e-4, 1e-3])
    axes.minorticks_off()
