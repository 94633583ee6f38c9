"""Claims, table and plot of the benchmark: KL without a shared part over KL with it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, judged, student
from benchmarks.zip_shared.measure import ARMS, FREE, NO_PACK, NONE, PAID, RATIOS
from skillweave.report import Table

Row = dict[str, Any]
COLOURS = ("#000000", "#E69F00", "#D55E00", "#0072B2", "#56B4E9", "#009E73")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Return for each group and size: the best way with a free shared part, and the best that counts its bytes."""
    found = []
    for group in _groups(rows):
        for ratio in RATIOS:
            for kind, arms in (("a free shared part", FREE), ("a shared part whose bytes count", PAID)):
                gains = {arm: gain for arm in arms if (gain := gained(rows, group, arm, ratio))}
                if gains:
                    best = max(gains, key=lambda arm: gains[arm][0])
                    claim = f"{_named(group)}, {ratio}: KL without over KL with {kind} (the best: {best})"
                    found.append(judged(claim, *gains[best], "> 1"))
    return found


def gained(rows: Sequence[Row], group: tuple[str, int], arm: str, ratio: str) -> tuple[float, float, float] | None:
    """Return the geometric mean over skills of KL(none) / KL(arm), with its 95% interval over seeds.

    With one seed, the range over skills stands for the interval. None if a size is missing.
    """
    own, plain = (
        {
            (row["seed"], row["skill"]): row["kl"]
            for row in rows
            if (row["relation"], row["packs"], row["arm"], row["ratio"]) == (*group, each, ratio)
        }
        for each in (arm, NONE)
    )
    both = sorted(own.keys() & plain.keys())
    if not both:
        return None
    logs = {key: math.log(plain[key] / own[key]) for key in both}
    seeds = sorted({seed for seed, _ in both})
    means = [statistics.fmean(log for (seed, _), log in logs.items() if seed == each) for each in seeds]
    if len(means) > 1:
        mean, low, high = student(means)
    else:
        mean, low, high = means[0], min(logs.values()), max(logs.values())
    return math.exp(mean), math.exp(low), math.exp(high)


def worth(rows: Sequence[Row], group: tuple[str, int], arm: str, ratio: str) -> float | None:
    """Return how many times the bytes a pack without a shared part would need for the same KL.

    It is the geometric mean over skills and seeds. Between two measured sizes log KL is linear in log bytes. None if a
    KL lies outside of what was measured without a shared part.
    """
    logs = []
    for row in rows:
        if (row["relation"], row["packs"], row["arm"], row["ratio"]) == (*group, arm, ratio):
            about = (*group, NONE, row["seed"], row["skill"])
            points = sorted(
                (math.log(each["kl"]), math.log(each["pack_bytes"]))
                for each in rows
                if each["ratio"] != NO_PACK
                and (each["relation"], each["packs"], each["arm"], each["seed"], each["skill"]) == about
            )
            kl = math.log(row["kl"])
            if not points or not points[0][0] <= kl <= points[-1][0]:
                return None
            kls, sizes = zip(*points, strict=True)
            logs.append(float(np.interp(kl, kls, sizes)) - math.log(row["pack_bytes"]))
    return math.exp(statistics.fmean(logs)) if logs else None


def table(rows: Sequence[Row]) -> Table:
    """Return a table with a line for each group and way: residual, KL of everyday prompts, gain at each size.

    A gain is KL(none) / KL(way) with its interval, and the bytes that a pack without a shared part would need for it.
    """
    shown = [ratio for ratio in RATIOS if any(row["ratio"] == ratio for row in rows)]
    lines = []
    for group in _groups(rows):
        for arm in ARMS:
            own = [row for row in rows if (row["relation"], row["packs"], row["arm"]) == (*group, arm)]
            if own:
                seeds = str(len({row["seed"] for row in own}))
                lines.append([group[0], str(group[1]), arm, seeds, *_figures(own), *_gains(rows, group, arm, shown)])
    header = [
        "fine-tunes",
        "packs",
        "shared part",
        "seeds",
        "cosine",
        "residual",
        "1000 KL everyday",
        "1000 KL no pack",
    ]
    return Table([*header, *shown], lines)


def _figures(own: Sequence[Row]) -> list[str]:
    """Return the figures that depend on no size; of a part that is zipped, those at the largest size."""
    alone = [row for row in own if row["ratio"] == NO_PACK]
    largest = next((ratio for ratio in RATIOS if any(row["ratio"] == ratio for row in own)), "")
    chosen = alone or [row for row in own if row["ratio"] == largest]

    def mean(key: str, form: str, scale: float = 1.0) -> str:
        found = [scale * row[key] for row in chosen if key in row]
        return f"{statistics.fmean(found):{form}}" if found else "-"

    no_pack = f"{1000 * statistics.fmean(row['kl'] for row in alone):.3g}" if alone else "-"
    return [mean("cosine", ".2f"), mean("residual", ".2f"), mean("everyday_kl", ".3g", 1000), no_pack]


def _gains(rows: Sequence[Row], group: tuple[str, int], arm: str, ratios: Sequence[str]) -> list[str]:
    if arm == NONE:
        found = [
            [
                row["kl"]
                for row in rows
                if (row["relation"], row["packs"], row["arm"], row["ratio"]) == (*group, arm, ratio)
            ]
            for ratio in ratios
        ]
        return [f"1000 KL {1000 * statistics.fmean(kls):.3g}" if kls else "-" for kls in found]
    cells = []
    for ratio in ratios:
        gain, bytes_for_it = gained(rows, group, arm, ratio), worth(rows, group, arm, ratio)
        text = f"{gain[0]:.2f}x ({gain[1]:.2f} to {gain[2]:.2f})" if gain else "-"
        cells.append(f"{text}, {bytes_for_it:.2f}x bytes" if bytes_for_it else text)
    return cells


def plot(rows: Sequence[Row]) -> Figure:
    """Return a figure with a panel for each group: KL(none) / KL(way) against the share of the delta."""
    groups = _groups(rows)
    columns = min(4, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(1 + 3 * columns, 0.8 + 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    shown = [ratio for ratio in RATIOS if any(row["ratio"] == ratio for row in rows)]
    for axes, group in zip(panels.flat, groups, strict=False):
        for arm, colour in zip(ARMS, COLOURS, strict=True):
            points = [(at, gain[0]) for at, r in enumerate(shown) if (gain := gained(rows, group, arm, r))]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, label=arm, markersize=4)
        axes.set_yscale("log")
        axes.set_xticks(range(len(shown)), shown)
        axes.set_title(_named(group), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("KL without over KL with")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _groups(rows: Sequence[Row]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["relation"], row["packs"]) for row in rows))


def _named(group: tuple[str, int]) -> str:
    return f"{group[0]}, {group[1]} packs"
