"""Rows, claims, table and plot of the serving benchmark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, bootstrap, judged
from skillweave.report import Table
from skillweave.serve.load import RequestTiming, load_summary

BARE = "skillweave, bare base"
OURS = "skillweave"
MOST = 8


def row(
    way: str, packs: int, use: str, repeat: int, timings: Sequence[RequestTiming], seconds: float
) -> dict[str, Any]:
    """One measurement."""
    figures = load_summary(timings, seconds)
    first = figures["first_token_seconds"] or {"p50": None, "p95": None}
    return {
        "way": way,
        "packs": packs,
        "use": use,
        "repeat": repeat,
        "tokens_per_second": figures["tokens_per_second"],
        "first_token_p50": first["p50"],
        "first_token_p95": first["p95"],
        "requests": figures["requests"],
        "answered": figures["answered"],
        "completion_tokens": figures["completion_tokens"],
    }


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """The goals, as ratios of the throughput of the same repeat."""
    made = []
    for use in ("uniform", "skewed"):
        ours = _speeds(rows, OURS, MOST, use)
        made.append(
            _claim(f"{MOST} packs, {use}, over the bare base in the same server", ours, _speeds(rows, BARE), ">= 0.85")
        )
    ours = _speeds(rows, OURS, MOST, "uniform")
    for way, goal in (
        ("full models in turn", ">= 4"),
        ("PEFT, mixed batches", "> 1"),
        ("vLLM, LoRA", "> 1"),
    ):
        theirs = _speeds(rows, way, MOST, "uniform")
        if theirs:
            made.append(_claim(f"{MOST} packs over {way}", ours, theirs, goal))
    theirs = _speeds(rows, "transformers serve, bare base")
    if theirs:
        made.append(_claim("bare base over transformers serve", _speeds(rows, BARE), theirs, "> 1"))
    return made


def _speeds(rows: Sequence[dict[str, Any]], way: str, packs: int = 0, use: str = "") -> list[float]:
    return [
        one["tokens_per_second"] for one in rows if one["way"] == way and one["packs"] == packs and one["use"] == use
    ]


def _claim(what: str, over: Sequence[float], under: Sequence[float], goal: str) -> Claim:
    pairs = [(ours, theirs) for ours, theirs in zip(over, under, strict=True) if theirs > 0]
    if len(pairs) < len(under):
        what += f" (without {len(under) - len(pairs)} of {len(under)} repeats, in which the latter answered nothing)"
    if not pairs:
        return Claim(what, math.nan, math.nan, math.nan, goal, holds=False)
    ratios = np.array([ours / theirs for ours, theirs in pairs])
    low, high = bootstrap(ratios, lambda picked: np.median(picked, axis=1))
    return judged(what, float(np.median(ratios)), low, high, goal)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Medians over repeats."""
    lines = []
    for way, packs, use in dict.fromkeys((one["way"], one["packs"], one["use"]) for one in rows):
        own = [one for one in rows if (one["way"], one["packs"], one["use"]) == (way, packs, use)]
        figures = [_median(own, key) for key in ("first_token_p50", "first_token_p95")]
        cells = ["-" if value is None else f"{value:.2f}" for value in figures]
        lost = sum(one["requests"] - one["answered"] for one in own)
        lines.append([way, str(packs), use, f"{_median(own, 'tokens_per_second'):.1f}", *cells, str(lost)])
    return Table(["way", "packs", "use", "tokens/s", "first token p50, s", "p95, s", "not answered"], lines)


def _median(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [one[key] for one in rows if one[key] is not None]
    return statistics.median(values) if values else None


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Tokens a second of every way, with the most packs that it was measured with."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    bars = {}
    for way, packs, use in dict.fromkeys((one["way"], one["packs"], one["use"]) for one in rows):
        if packs in (0, MOST):
            label = way if packs == 0 else f"{way}, {packs} packs, {use}"
            own = [one for one in rows if (one["way"], one["packs"], one["use"]) == (way, packs, use)]
            bars[label] = _median(own, "tokens_per_second") or 0.0
    colours = ["#009E73" if label.startswith("skillweave") else "#999999" for label in bars]
    axis.barh(list(bars), list(bars.values()), color=colours)
    axis.invert_yaxis()
    axis.set_xlabel("tokens a second")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
