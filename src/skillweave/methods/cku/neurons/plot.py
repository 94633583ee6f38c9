"""Plot the neurons of an unlearning: how useful each one is, which ones are frozen, and which the forget set uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]

FROZEN, TRAINED = "Blues", "Oranges"
"""Colour maps; the darker the shade, the more the forget set uses a neuron."""

_LIGHT, _DARK = 0.08, 0.92
"""The part of a colour map that is used: its lightest shades look like the background."""

_COLUMNS = 640
"""The number of columns that can be told apart. If there are more neurons, several share a column, as a mean."""


def neurons_plot(
    score: Mapping[int, Any],
    forget: Mapping[int, Any],
    frozen: Mapping[int, Any],
    overlap: Mapping[int, Mapping[str, float | None]],
) -> Figure:
    """Draw one row per layer, with its neurons sorted by score. Every mapping is by layer.

    - ``score`` (neurons,): the scores, in the upper picture
    - ``forget`` (neurons,): the scores on the forget set. The lower picture shows the same neurons, the darker the
      higher they rank there.
    - ``frozen`` (neurons,) bool: blue in the lower picture
    - ``overlap``: ``share`` and ``chance`` of :func:`~skillweave.methods.cku.neurons.score.frozen_overlap`, as bars
      beside the lower picture
    """
    layers = sorted(score)
    scores = [numpy.asarray(score[layer], dtype=float) for layer in layers]
    order = [numpy.argsort(values, kind="stable") for values in scores]
    width = max(map(len, scores))
    inches = min(4.5, max(0.9, 0.3 * len(layers)))
    figure = Figure(figsize=(9.5, 2 * inches + 2.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 1))
    above, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    beside, aside = figure.add_subplot(grid[1, 1], sharey=below), figure.add_subplot(grid[0, 1])

    _draw_scores(figure, above, aside, [values[places] for values, places in zip(scores, order, strict=True)], width)
    shades = numpy.ones((len(layers), width, 4))
    for row, (layer, places) in enumerate(zip(layers, order, strict=True)):
        used = _ranks(numpy.asarray(forget[layer], dtype=float))[places]
        is_frozen = numpy.asarray(frozen[layer], dtype=bool)[places]
        shades[row, : len(places)] = numpy.where(is_frozen[:, None], _shade(FROZEN, used), _shade(TRAINED, used))
    _show(below, shades)
    below.set_title("Which neurons the forget set uses (darker: more), and which are frozen", fontsize=9, loc="left")
    below.set_xlabel("neurons of the layer, by score: the most useful on the right")
    _draw_overlap(beside, [overlap[layer] for layer in layers])
    for axes in (above, below):
        _name_layers(axes, layers)
    handles = [
        Patch(color=matplotlib.colormaps[name](0.65), label=label)
        for name, label in ((FROZEN, "frozen"), (TRAINED, "trained"))
    ]
    below.legend(
        handles=handles,
        ncols=2,
        fontsize=8,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        borderaxespad=0.2,
    )
    return figure


def _draw_scores(figure: Figure, axes: Axes, aside: Axes, rows: Sequence[Floats], width: int) -> None:
    """Draw the sorted scores of each layer, and their colour scale in ``aside``."""
    table = numpy.full((len(rows), width), numpy.nan)
    if min(values.min() for values in rows) < 0:  # a log ratio: what matters is its sign
        for row, values in enumerate(rows):
            table[row, : len(values)] = values
        reach = float(numpy.nanquantile(numpy.abs(table), 0.98)) or 1.0
        norm: Normalize = CenteredNorm(0, halfrange=reach)
        colours, label = "PRGn", "score (0: both sets need it equally)"
    else:  # positive scores, whose scale differs between layers
        for row, values in enumerate(rows):
            table[row, : len(values)] = numpy.clip(values / (values.mean() or 1.0), 0.1, 10)
        norm, colours, label = LogNorm(0.1, 10), "viridis", "score / mean of its layer"
    image = _show(axes, table, cmap=colours, norm=norm)
    axes.set_title("How useful each neuron is", fontsize=9, loc="left")
    axes.tick_params(labelbottom=False)
    aside.axis("off")
    scale = figure.colorbar(image, ax=aside, location="left", fraction=0.2, aspect=12, extend="both")
    scale.set_label(label, fontsize=8)
    scale.ax.tick_params(labelsize=7)


def _draw_overlap(axes: Axes, overlap: Sequence[Mapping[str, float | None]]) -> None:
    """Draw, per layer, the share of the frozen neurons that the forget set uses most, with a tick at chance level."""
    shares = [100 * (layer["share"] or 0.0) for layer in overlap]
    chances = [100 * (layer["chance"] or 0.0) for layer in overlap]
    axes.barh(range(len(shares)), shares, height=0.7, color=matplotlib.colormaps[FROZEN](0.65))
    axes.plot(chances, range(len(chances)), "|", color="black", markersize=7, markeredgewidth=1.4)
    axes.set_xlim(0, 100)
    axes.set_title("share of the frozen that\nthe forget set uses most", fontsize=8, loc="left")
    axes.set_xlabel("%  (black: by chance)", fontsize=8)
    axes.tick_params(labelleft=False, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _show(axes: Axes, table: Floats, **options: Any) -> AxesImage:
    """Draw a (layers, neurons) or (layers, neurons, 4) picture, without interpolation between layers."""
    width = table.shape[1]
    group = -(-width // _COLUMNS)
    ends = numpy.append(numpy.arange(group, width, group), width)
    valid = numpy.ma.masked_invalid(table)
    picture = numpy.ma.stack([valid[:, max(0, end - group) : end].mean(axis=1) for end in ends], axis=1)
    return axes.imshow(
        picture, aspect="auto", interpolation="nearest", extent=(0, width, len(table) - 0.5, -0.5), **options
    )


def _name_layers(axes: Axes, layers: Sequence[int]) -> None:
    every = -(-len(layers) // 16)
    axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]], fontsize=8)
    axes.set_ylabel("layer")


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, for the lowest value, to 1, for the highest."""
    ranks = numpy.empty(len(values))
    ranks[numpy.argsort(values, kind="stable")] = numpy.arange(len(values))
    return ranks / max(1, len(values) - 1)


def _shade(name: str, values: Floats) -> Floats:
    """The (N, 4) colours of values from 0 to 1."""
    return numpy.asarray(matplotlib.colormaps[name](_LIGHT + (_DARK - _LIGHT) * values))
