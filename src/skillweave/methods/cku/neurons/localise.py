"""The stage that finds the useful neurons: scores on both sets, what is frozen, and how that overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skillweave.base.batching import by_length, padded
from skillweave.base.safetensors_io import read_tensors, write_tensors
from skillweave.errors import UserError
from skillweave.methods.cku.config import LocaliseSettings
from skillweave.methods.cku.knowledge.reading import Row, split_row
from skillweave.methods.cku.neurons.freeze import choose_frozen
from skillweave.methods.cku.neurons.mlp import MLP
from skillweave.methods.cku.neurons.scores import contrast, default_layers, neuron_scores, useful_neurons

_FILE = "neurons.safetensors"


def chosen_mlps(mlps: Sequence[MLP], layers: Sequence[int] | str) -> list[MLP]:
    """The MLPs of the chosen layers. Raises :class:`UserError` for a layer that the model does not have."""
    count = len(mlps)
    if layers == "all":
        return list(mlps)
    wanted = default_layers(count) if isinstance(layers, str) else sorted(set(layers))
    strange = [layer for layer in wanted if not 0 <= layer < count]
    if strange or not wanted:
        raise UserError(f"localise.layers {layers}: the base has layers 0 to {count - 1}")
    return [mlps[layer] for layer in wanted]


def localise(
    model: Any, pad: int, forget: Sequence[Row], retain: Sequence[Row], mlps: Sequence[MLP],
    settings: LocaliseSettings, folder: Path, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Score the neurons and choose the frozen ones; both are written into ``folder``. Figures of the choice.

    ``overlap``: of as many neurons as are frozen, those that score highest on the forget set, the share that is frozen.
    At random it would be ``ratio``.
    """
    layers = [mlp.layer for mlp in mlps]
    sides = {
        side: list(batches(rows[: settings.examples], pad, settings.batch_size))
        for side, rows in (("retain", retain), ("forget", forget))
    }
    plain = settings.contrast_of if settings.scorer == "contrast" else settings.scorer
    scores, on_forget = (
        neuron_scores(model, sides[side], scorer=plain, layers=layers) for side in ("retain", "forget")
    )
    if settings.scorer == "contrast":
        scores = {layer: contrast(scores[layer], on_forget[layer]) for layer in layers}
    useful = useful_neurons(scores, settings.ratio, scope=settings.scope)
    frozen = choose_frozen(useful, scores, settings.freeze, seed)
    used = useful_neurons(on_forget, settings.ratio, scope=settings.scope)
    write_tensors(
        folder / _FILE,
        {
            **{f"score.{layer}": scores[layer] for layer in layers},
            **{f"forget.{layer}": on_forget[layer] for layer in layers},
            **{f"frozen.{layer}": frozen[layer] for layer in layers},
        },
        {"scorer": settings.scorer, "of": plain},
    )
    both = sum(int((frozen[layer] & used[layer]).sum()) for layer in layers)
    return {
        "layers": layers,
        "neurons": sum(len(mask) for mask in frozen.values()),
        "frozen": sum(int(mask.sum()) for mask in frozen.values()),
        "overlap": both / max(1, sum(int(mask.sum()) for mask in used.values())),
    }


def read_neurons(folder: Path) -> dict[str, dict[int, Tensor]]:
    """What :func:`localise` wrote: ``score``, ``forget`` (float32), ``frozen`` (bool), each (neurons,) by layer."""
    found: dict[str, dict[int, Tensor]] = {"score": {}, "forget": {}, "frozen": {}}
    for name, tensor in read_tensors(folder / _FILE).items():
        kind, _, layer = name.partition(".")
        found[kind][int(layer)] = tensor
    return found


def batches(rows: Sequence[Row], pad: int, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Rows as padded batches on the CPU, those of like length together."""
    for piece in by_length([len(row["input_ids"]) for row in rows], size):
        yield padded([split_row(rows[index]) for index in piece], pad)
