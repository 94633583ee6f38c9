"""What the cells say: rows that join KL and score, claims, the table and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, bootstrap, judged
from benchmarks.zip_quality.codecs import (
    ABLATED,
    ABLATIONS,
    ALL,
    CODECS,
    PEERS,
    PLAIN,
    RATIOS,
    SKILLZIP,
    SMALLEST,
    SPECIALIST,
)
from benchmarks.zip_quality.skills import LENGTHS, LONG, SHORT
from skillweave.pipeline.retention import retention
from skillweave.report import Table
from skillweave.skillzip import ZipConfig
from skillweave.units import human_bytes

GOALS = {
    SHORT: {"1/256": 0.99, "1/1024": 0.95},
    LONG: {"1/64": 0.99, "1/128": 0.97, "1/256": 0.95, "1/512": 0.90},
}
"""The share of the gain that SkillZip should keep at a share of the delta."""
Row = dict[str, Any]


def joined(cells: Sequence[Row]) -> list[Row]:
    """Return one row for each skill, fine-tune, codec, ratio and seed, with both measures as far as they are there.

    The smallest pack of a codec stands in one row, under the ratio ``smallest``. ``retained`` is the share of the gain,
    with its 95% interval over prompts.
    """
    rows: dict[tuple, Row] = {}
    for cell in cells:
        ratio = SMALLEST if cell["smallest"] else cell["ratio"]
        key = (cell["skill"], cell["length"], cell["codec"], ratio, cell["seed"])
        shared = {name: value for name, value in cell.items() if name not in ("measure", "seconds", "peak_bytes")}
        row = rows.setdefault(key, {"seconds": 0.0})
        row |= {**shared, "ratio": ratio, "seconds": round(row["seconds"] + cell["seconds"], 1)}
    for row in rows.values():
        if "kl_of_prompts" in row:
            row["kl"] = float(f"{statistics.fmean(row['kl_of_prompts']):.5g}")
        base, best = (rows.get((row["skill"], row["length"], arm, "", 0), {}) for arm in (PLAIN, SPECIALIST))
        if all("score_of_prompts" in each for each in (row, base, best)):
            scores = [each["score_of_prompts"] for each in (base, best, row)]
            row["score"] = statistics.fmean(scores[2])
            if statistics.fmean(scores[1]) > statistics.fmean(scores[0]):
                row["retained"], row["retained_low"], row["retained_high"] = retention(*scores)
    return list(rows.values())


def _groups(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the fine-tunes, each a skill and a length: the short ones first."""
    found = dict.fromkeys((row["skill"], row["length"]) for row in rows)
    return sorted(found, key=lambda group: LENGTHS.index(group[1]))


def _of(rows: Sequence[Row], group: tuple[str, str], codec: str, ratio: str, measured: str) -> list[Row]:
    """Return the rows of all seeds that have the figure ``measured``."""
    wanted = (*group, codec, ratio)
    return [
        row
        for row in rows
        if (row["skill"], row["length"], row["codec"], row["ratio"]) == wanted and row.get(measured) is not None
    ]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Return the claims: SkillZip leads at each ratio, keeps its share of the gain, and stays within its bytes."""
    groups = _groups(rows)
    ordered = sorted(RATIOS, key=lambda ratio: -ZipConfig(ratio=ratio).ratio)
    found = [claim for group in groups for ratio in ordered for claim in _leads(rows, group, ratio)]
    for length, goals in GOALS.items():
        for ratio, goal in goals.items():
            for group in groups:
                kept = [row["retained"] for row in _of(rows, group, SKILLZIP, ratio, "retained")]
                if group[1] == length and kept:
                    claim = f"{group[0]}, {length}: share of the gain kept at {ratio} (the range is over seeds)"
                    found.append(judged(claim, statistics.fmean(kept), min(kept), max(kept), f">= {goal:g}"))
    limits = [(row, ZipConfig(ratio=row["ratio"]).ratio) for row in rows if row["ratio"] not in ("", SMALLEST)]
    shares = [row["pack_bytes"] / (ratio * row["delta_bytes"]) for row, ratio in limits]
    if shares:
        claim = "bytes of a pack over the bytes asked for: the most (least to most of all packs)"
        found.append(judged(claim, max(shares), min(shares), max(shares), "<= 1"))
    return found


def _leads(rows: Sequence[Row], group: tuple[str, str], ratio: str) -> list[Claim]:
    """Return the claim that SkillZip is closer to the specialist than the best of the others at this ratio.

    The interval is over prompts, each with its mean over seeds.
    """
    ours = _of(rows, group, SKILLZIP, ratio, "kl")
    peers = [peer for name in PEERS for peer in _of(rows, group, name, ratio, "kl")]
    if not ours or not peers:
        return []  # no other codec writes so small a pack
    best = min(peers, key=lambda row: row["kl"])
    own = np.mean([row["kl_of_prompts"] for row in ours], axis=0)
    both = np.array([best["kl_of_prompts"], own]).T
    low, high = bootstrap(both, lambda picked: picked[..., 0].mean(axis=1) / picked[..., 1].mean(axis=1))
    claim = f"{', '.join(group)}, {ratio}: KL of the best other ({best['codec']}) over KL of {SKILLZIP}"
    return [judged(claim, best["kl"] / float(own.mean()), low, high, "> 1")]


def table(rows: Sequence[Row]) -> Table:
    """Return a table with a line for each codec and ratio; the cells of a fine-tune are means over seeds.

    A cell holds bytes, KL in thousandths of a nat, and the share of the gain that is kept (for the base and the delta
    itself, the score). A line says how many seeds it has at most.
    """
    groups = _groups(rows)
    order = [(PLAIN, ""), (SPECIALIST, "")]
    ratios = sorted(RATIOS, key=lambda ratio: -ZipConfig(ratio=ratio).ratio)
    order += [(codec, ratio) for ratio in [*ratios, SMALLEST] for codec in CODECS]
    order += [(codec, ABLATED) for codec in ABLATIONS] + [(codec, SMALLEST) for codec in ABLATIONS]
    lines = []
    for codec, ratio in order:
        own = [row for row in rows if (row["codec"], row["ratio"]) == (codec, ratio)]
        if own:
            cells = [_cell(rows, group, codec, ratio) for group in groups]
            lines.append([codec, ratio or "-", str(len({row["seed"] for row in own})), *cells])
    return Table(["codec", "of the delta", "seeds", *(f"{skill}, {length}" for skill, length in groups)], lines)


def _cell(rows: Sequence[Row], group: tuple[str, str], codec: str, ratio: str) -> str:
    kls = [row["kl"] for row in _of(rows, group, codec, ratio, "kl")]
    taken = [row["pack_bytes"] for row in _of(rows, group, codec, ratio, "pack_bytes")]
    if not taken:
        return "-"
    parts = [human_bytes(max(taken)), f"KL {1000 * statistics.fmean(kls):.3g}" if kls else "KL -"]
    name = "score" if ratio == "" else "retained"
    shares = [row[name] for row in _of(rows, group, codec, ratio, name)]
    if shares:
        parts.append(f"{100 * statistics.fmean(shares):.1f}%")
    return ", ".join(parts)


def plot(rows: Sequence[Row]) -> Figure:
    """Return a figure with a column for each fine-tune: share of the gain kept, and KL, against size."""
    groups = _groups(rows)
    figure = Figure(figsize=(1 + 3.2 * len(groups), 6), layout="constrained")
    panels = figure.subplots(2, len(groups), squeeze=False, sharey="row")
    for column, group in enumerate(groups):
        for line, measured in enumerate(("retained", "kl")):
            axes = panels[line, column]
            for codec in CODECS:
                points = _curve(rows, group, codec, measured)
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", color=ALL[codec].colour, label=codec, markersize=4)
            axes.set_xscale("log")
            axes.spines[["top", "right"]].set_visible(False)
        panels[1, column].set_yscale("log")
        panels[0, column].axhline(1, color="#bbbbbb", linestyle="--", linewidth=1)
        panels[0, column].set_title(", ".join(group), fontsize=10)
        panels[1, column].set_xlabel("size of the pack, MB")
    panels[0, 0].set_ylabel("share of the gain kept")
    panels[1, 0].set_ylabel("KL to the specialist, nats a token")
    named = {
        label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    return figure


def _curve(rows: Sequence[Row], group: tuple[str, str], codec: str, measured: str) -> list[tuple[float, float]]:
    """Return the points of a codec's curve, (megabytes, figure), each a mean over seeds."""
    points = []
    for ratio in (*RATIOS, SMALLEST):
        own = _of(rows, group, codec, ratio, measured)
        if own:
            points.append(
                (
                    statistics.fmean(row["pack_bytes"] for row in own) / 1e6,
                    statistics.fmean(row[measured] for row in own),
                )
            )
    return sorted(points)
