"""The rows, claims, table and plot of the benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, bootstrap, judged
from benchmarks.zip_speed.models import DTYPES, INT8
from benchmarks.zip_speed.timing import DECODE, GOAL_PACKS, PREFILL, TURNS, Size
from skillweave.report import Table
from skillweave.units import human_bytes


def rows(size: Size, taken: dict[str, list[float]], floors: dict[str, float]) -> list[dict[str, Any]]:
    """A row of the result for each way."""
    return [
        {
            "what": size.stage,
            "packs": size.packs,
            "rows_each": size.rows_each,
            "way": way,
            "median_ms": round(1e3 * statistics.median(own), 3),
            "fastest_ms": round(1e3 * min(own), 3),
            "floor_ms": round(1e3 * floors[way], 3) if way in floors else None,
            "ms": [round(1e3 * value, 3) for value in own],
        }
        for way, own in taken.items()
    ]


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios of the repeats, with its bootstrap interval."""
    ratios = np.array(over) / np.array(under)
    return float(np.median(ratios)), *bootstrap(ratios, lambda picked: np.median(picked, axis=1))


def claims(seconds: dict[Size, dict[str, list[float]]]) -> list[Claim]:
    """The claims on time, from the seconds of every repeat of each way."""
    made = []
    for size, taken in seconds.items():
        if size.packs != GOAL_PACKS:
            continue
        text = f"{size.stage}, {size.packs} packs, {size.rows_each} row{'s' if size.rows_each > 1 else ''} each"
        dtype = min(DTYPES, key=lambda dtype: statistics.median(taken[f"base, {dtype}"]))
        bare, plain = taken[f"base, {dtype}"], taken[f"packs, {dtype}"]
        made.append(
            judged(f"{text}: packs on int8 over bare base ({dtype})", *ratio(taken["packs, int8"], bare), "<= 1")
        )
        made.append(judged(f"{text}: packs over bare base, both {dtype}", *ratio(plain, bare), "<= 1.3"))
        for way in ("packs, int8", f"packs, {dtype}"):
            made.append(judged(f"{text}: full models in turn over {way}", *ratio(taken[TURNS], taken[way]), ">= 4"))
    for stage in dict.fromkeys(size.stage for size in seconds):
        for dtype in DTYPES:
            ratios = {
                size: ratio(taken[f"PEFT, {dtype}"], taken[f"packs, {dtype}"])
                for size, taken in seconds.items()
                if size.stage == stage
            }
            least, values = min(ratios.items(), key=lambda item: item[1][0])
            text = f"{stage}, {dtype}: PEFT over packs, the least of all sizes ({least.packs} x {least.rows_each})"
            made.append(judged(text, *values, "> 1"))
    return made


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of medians by way and size, and of memory."""
    timed = [row for row in rows if row["what"] in (DECODE, PREFILL)]
    sizes = list(dict.fromkeys((row["packs"], row["rows_each"]) for row in timed))
    lines = []
    for stage in (DECODE, PREFILL):
        for way in dict.fromkeys(row["way"] for row in timed):
            found = {(r["packs"], r["rows_each"]): r for r in timed if r["way"] == way and r["what"] == stage}
            cells = [f"{found[size]['median_ms']:.1f}" if size in found else "-" for size in sizes]
            lines.append([f"{stage}, ms", way, *cells])
            if stage == DECODE and way.startswith("packs"):
                floors = [f"{found[size]['floor_ms']:.1f}" if size in found else "-" for size in sizes]
                lines.append(["", "  bytes at full bandwidth", *floors])
    for row in rows:
        if row["what"] == "memory":
            over = human_bytes(row["over_imports"]), f"{row['of_base']:.2f}x"
            lines.append(["memory", row["way"], human_bytes(row["tensor_bytes"]), *over])
    width = max(5, 2 + len(sizes))
    header = ["what", "way", *(f"{packs} x {per}" for packs, per in sizes)]
    return Table(header + [""] * (width - len(header)), [line + [""] * (width - len(line)) for line in lines])


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the milliseconds of a decoding step by the number of packs, one row each."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    least = min((row["rows_each"] for row in rows if row["what"] == DECODE), default=1)
    timed = [row for row in rows if row["what"] == DECODE and row["rows_each"] == least]
    colours = {"base": "#999999", "packs": "#009E73", "PEFT": "#D55E00", TURNS: "#0072B2"}
    styles = {"bfloat16": "-", "float32": ":", INT8: "--"}
    for way in dict.fromkeys(row["way"] for row in timed):
        what, _, backbone = way.partition(", ")
        own = [row for row in timed if row["way"] == way]
        axes.plot(
            [row["packs"] for row in own],
            [row["median_ms"] for row in own],
            color=colours[what],
            linestyle=styles.get(backbone, "-"),
            marker=".",
            label=way,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(f"packs in the batch, rows for each: {least}")
    axes.set_ylabel("ms a decoding step")
    if timed:
        axes.legend(handlelength=3, fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
