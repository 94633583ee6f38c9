"""Bar charts that several reports draw, and figures as SVG text."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from skillweave.report.escape import label_text


def draw_bars(
    axes: Axes,
    groups: Mapping[str, Mapping[str, Any]],
    colours: Mapping[str, str],
    intervals: Sequence[Mapping[str, Sequence[float]]] | None = None,
) -> None:
    """Draw named groups of bars side by side. Heights are shares, drawn in percent.

    - ``groups``: for each group the height of each bar, by the bar's name; a bar that is None or missing leaves a gap
    - ``colours``: the names of the bars, in order, and their colours
    - ``intervals``: for each group the low and the high end of each bar's interval
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
        # If all scores are equal, rounding may put an end on the wrong side of the mean; an error bar must be positive.
        lows = [max(0.0, mean - 100 * low) for mean, (low, _) in zip(means, ends, strict=True)]
        highs = [max(0.0, 100 * high - mean) for mean, (_, high) in zip(means, ends, strict=True)]
        axes.errorbar(places, means, yerr=[lows, highs], fmt="none", ecolor="#333333", capsize=2, linewidth=0.8)
    axes.set_xticks(range(len(groups)), list(map(label_text, groups)))
    axes.set_ylim(0, 105)
    axes.legend(ncols=len(colours), fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)


def svg_text(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element. The same figure always gives the same text."""
    buffer = io.StringIO()
    for axes in figure.axes:
        _label_with_numbers(axes.xaxis)
        _label_with_numbers(axes.yaxis)
    for part in figure.findobj(lambda part: isinstance(part, Text)):
        part.set(parse_math=False)  # a "$" in a name does not start a formula
    # Without a salt the ids would be random. parse_math is set again for tick labels, which are created while drawing.
    with rc_context({"svg.hashsalt": "skillweave", "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # an emoji is drawn as a box
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _label_with_numbers(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with numbers. Its own labels are formulas, which are not parsed here.

    If it spans less than a decade and a half, the ticks at 2 and 5 times a power of ten have labels, too.
    """
    if not isinstance(axis.get_major_formatter(), LogFormatter):
        return
    low, high = sorted(map(abs, axis.get_view_interval()))
    narrow = low > 0 and math.log10(high / low) < 1.5

    def minor(value: float, _: float) -> str:
        leading = f"{value:.0e}".lstrip("-")[0]
        return f"{value:g}" if narrow and leading in "25" else ""

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(minor)
