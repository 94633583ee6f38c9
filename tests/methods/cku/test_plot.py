"""The drawing of the neurons: what stands where, and which colour it has."""

from __future__ import annotations

import warnings

import numpy
import pytest
import torch
from matplotlib import colormaps

from skillweave.methods.cku.neurons.plot import neurons_plot
from skillweave.report import svg_text


def drawing(widths: dict[int, int], ratio: float, *, signed: bool = False, seed: int = 0):
    """Random scores of layers of these widths, the highest ``ratio`` of each frozen; and the figure of them."""
    generator = torch.Generator().manual_seed(seed)
    score = {layer: torch.randn(width, generator=generator) for layer, width in widths.items()}
    score = score if signed else {layer: values.exp() for layer, values in score.items()}
    forget = {layer: torch.randn(width, generator=generator).exp() for layer, width in widths.items()}
    frozen = {}
    for layer, values in score.items():
        frozen[layer] = torch.zeros(len(values), dtype=torch.bool)
        frozen[layer][values.argsort()[len(values) - round(ratio * len(values)) :]] = True
    overlap = {layer: {"share": 0.1 * (place + 1), "chance": ratio} for place, layer in enumerate(widths)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = neurons_plot(score, forget, frozen, overlap)
        text = svg_text(figure)
    assert text.startswith("<svg")
    return score, forget, figure


def test_scores_stand_sorted_and_a_layers_mean_is_one() -> None:
    score, _, figure = drawing({2: 8, 5: 8}, 0.75)
    shown = numpy.asarray(figure.axes[0].images[0].get_array())
    for row, layer in enumerate((2, 5)):
        values = score[layer].numpy()
        assert shown[row] == pytest.approx(numpy.clip(numpy.sort(values) / values.mean(), 0.1, 10), rel=1e-6)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["2", "5"]


def test_what_is_below_zero_is_drawn_as_it_is_around_zero() -> None:
    score, _, figure = drawing({0: 50}, 0.5, signed=True)
    image = figure.axes[0].images[0]
    assert numpy.asarray(image.get_array())[0] == pytest.approx(numpy.sort(score[0].numpy()))
    assert image.norm(0.0) == pytest.approx(0.5)


def test_the_frozen_are_blue_and_darker_where_the_forget_set_uses_them_more() -> None:
    score, forget, figure = drawing({0: 10}, 0.6)
    colours = numpy.asarray(figure.axes[1].images[0].get_array())[0]
    order = score[0].argsort()
    ranks = forget[0].argsort().argsort()[order].numpy()
    assert (colours[:4, 0] > colours[:4, 2]).all()  # trained: more red than blue
    assert (colours[4:, 2] > colours[4:, 0]).all()
    for part in (slice(0, 4), slice(4, 10)):
        brightness = colours[part, :3].sum(axis=1)
        assert (numpy.argsort(-brightness) == numpy.argsort(ranks[part])).all()


def test_bars_show_the_shares_and_ticks_chance() -> None:
    _, _, figure = drawing({3: 20, 4: 20}, 0.8)
    beside = figure.axes[2]
    assert [bar.get_width() for bar in beside.patches] == pytest.approx([10.0, 20.0])
    assert list(beside.lines[0].get_xdata()) == pytest.approx([80.0, 80.0])
    assert beside.get_ylim() == figure.axes[1].get_ylim()  # beside the layer they belong to


@pytest.mark.parametrize(
    ("widths", "columns"),
    [({0: 1}, 1), (dict.fromkeys(range(30), 1536), 512), ({0: 640, 1: 3}, 640), ({0: 1300, 1: 700}, 434)],
)
@pytest.mark.parametrize("ratio", [0.0, 0.8, 1.0])
def test_any_shape_is_drawn(widths: dict[int, int], columns: int, ratio: float) -> None:
    _, _, figure = drawing(widths, ratio)
    for axes in figure.axes[:2]:
        image = axes.images[0]
        assert image.get_array().shape[:2] == (len(widths), columns)
        assert image.get_extent()[:2] == [0, max(widths.values())]


def test_scores_that_are_all_zero_are_drawn() -> None:
    none = {0: torch.zeros(4)}
    figure = neurons_plot(none, none, {0: torch.zeros(4, dtype=torch.bool)}, {0: {"share": None, "chance": 0.0}})
    assert svg_text(figure)
    assert figure.axes[2].patches[0].get_width() == 0
    assert colormaps["viridis"](0.0) == pytest.approx(figure.axes[0].images[0].to_rgba(0.1))
