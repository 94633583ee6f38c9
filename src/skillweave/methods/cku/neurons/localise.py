"""The stage that finds the useful neurons: it scores them on both sets and chooses which ones are frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from skillweave.base.batching import by_length, padded
from skillweave.base.safetensors_io import read_tensors, write_tensors
from skillweave.errors import UserError
from skillweave.methods.cku.config import LocaliseSettings
from skillweave.methods.cku.knowledge.facts import FactRow
from skillweave.methods.cku.knowledge.reading import split_row
from skillweave.methods.cku.neurons.freeze import choose_frozen
from skillweave.methods.cku.neurons.mlp import MLP
from skillweave.methods.cku.neurons.scorers import contrast, default_layers, neuron_scores, useful_neurons

NEURONS_FILE = "neurons.safetensors"


def chosen_mlps(mlps: Sequence[MLP], layers: Sequence[int] | str) -> list[MLP]:
    """Return the MLPs of the chosen layers. Raises :class:`UserError` for a layer that the model does not have."""
    count = len(mlps)
    if layers == "all":
        return list(mlps)
    wanted = default_layers(count) if isinstance(layers, str) else sorted(set(layers))
    missing = [layer for layer in wanted if not 0 <= layer < count]
    if missing or not wanted:
        raise UserError(f"localise.layers {layers}: the base has layers 0 to {count - 1}")
    return [mlps[layer] for layer in wanted]


def localise(
    model: Any,
    pad: int,
    forget: Sequence[FactRow],
    retain: Sequence[FactRow],
    mlps: Sequence[MLP],
    settings: LocaliseSettings,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """Score the neurons, choose the frozen ones, and write both into ``folder``. Returns the figures of the choice:

    - ``layers``, ``neurons`` and ``frozen``: the layers, the number of their neurons and how many of them are frozen
    - ``overlap``: take the best-scoring neurons on the forget set, as many as are frozen; the share of them that is
      frozen. With a random choice it would be ``ratio``.
    """
    layers = [mlp.layer for mlp in mlps]
    scorer = settings.contrast_of if settings.scorer == "contrast" else settings.scorer

    def scores_on(rows: Sequence[FactRow]) -> dict[int, Tensor]:
        batches = list(padded_batches(rows[: settings.examples], pad, settings.batch_size))
        return neuron_scores(model, batches, scorer=scorer, layers=layers)

    scores, on_forget = scores_on(retain), scores_on(forget)
    if settings.scorer == "contrast":
        scores = {layer: contrast(scores[layer], on_forget[layer]) for layer in layers}
    useful = useful_neurons(scores, settings.ratio, scope=settings.scope)
    frozen = choose_frozen(useful, scores, settings.freeze, seed)
    used = useful_neurons(on_forget, settings.ratio, scope=settings.scope)
    write_tensors(
        folder / NEURONS_FILE,
        {
            **{f"score.{layer}": scores[layer] for layer in layers},
            **{f"forget.{layer}": on_forget[layer] for layer in layers},
            **{f"frozen.{layer}": frozen[layer] for layer in layers},
        },
        {"scorer": settings.scorer, "of": scorer},
    )
    both = sum(int((frozen[layer] & used[layer]).sum()) for layer in layers)
    return {
        "layers": layers,
        "neurons": sum(len(mask) for mask in frozen.values()),
        "frozen": sum(int(mask.sum()) for mask in frozen.values()),
        "overlap": both / max(1, sum(int(mask.sum()) for mask in used.values())),
    }


def read_neurons(folder: Path) -> dict[str, dict[int, Tensor]]:
    """Return what :func:`localise` wrote, (neurons,) by layer: ``score``, ``forget`` (float32), ``frozen`` (bool)."""
    tensors: dict[str, dict[int, Tensor]] = {"score": {}, "forget": {}, "frozen": {}}
    for name, tensor in read_tensors(folder / NEURONS_FILE).items():
        kind, _, layer = name.partition(".")
        tensors[kind][int(layer)] = tensor
    return tensors


def padded_batches(rows: Sequence[FactRow], pad: int, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield the rows as padded batches on the CPU; rows of similar length are in one batch."""
    for batch in by_length([len(row["input_ids"]) for row in rows], size):
        yield padded([split_row(rows[index]) for index in batch], pad)
