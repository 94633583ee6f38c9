"""Frozen neurons: their weights stay the same bit for bit in any training, whatever the optimiser does.

This takes two things:

- Their gradients are cleared as soon as they are computed. If they were cleared only after gradient clipping, their
  norm would already have scaled down the other gradients.
- Their weights are restored after every step. An optimiser also moves weights that have no gradient, by weight decay or
  by its momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback

from skillweave.errors import UserError
from skillweave.methods.cku.neurons.mlp import MLP, slices


class FrozenNeurons(TrainerCallback):
    """Keeps the chosen neurons of a model as they are while other weights are trained.

    ``frozen``: (neurons,) bool by layer. Create it before the optimiser, and pass it to the trainer as a callback.

    In a model with LoRA adapters, a neuron is frozen if the adapters do not touch its weights: row i of B is zero where
    the neuron is an output of the matrix, column i of A where it is an input, and both stay zero. Parameters that are
    not trained need nothing.
    """

    def __init__(self, model: Any, mlps: Sequence[MLP], frozen: Mapping[int, Tensor]) -> None:
        self._kept: list[tuple[torch.nn.Parameter, int, Tensor, Tensor]] = []
        for parameter, axis, rows in _places(model, mlps, frozen):
            if not parameter.requires_grad or not len(rows):
                continue
            rows = rows.to(parameter.device)
            self._kept.append((parameter, axis, rows, parameter.detach().index_select(axis, rows).clone()))
            parameter.register_hook(_clearing_hook(axis, rows))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the frozen weights."""
        self.restore()

    def restore(self) -> None:
        """Give the frozen neurons the weights that they had when this was created."""
        with torch.no_grad():
            for parameter, axis, rows, values in self._kept:
                parameter.index_copy_(axis, rows, values)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise :class:`UserError` if the parameters are split over processes: then there are no whole rows."""
        check_whole([parameter for parameter, *_ in self._kept])


def check_whole(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Raise :class:`UserError` if this process holds only a part of a parameter."""
    if any(parameter.numel() == 0 or hasattr(parameter, "device_mesh") for parameter in parameters):
        raise UserError(
            "unlearning needs the whole model in every process, but FSDP and DeepSpeed's stage 3 split it: train with "
            "plain data parallelism, or with train: lora on the cards you have"
        )


def _places(
    model: Any, mlps: Sequence[MLP], frozen: Mapping[int, Tensor]
) -> list[tuple[torch.nn.Parameter, int, Tensor]]:
    """Return (parameter, axis, indices along it) of everything that belongs to the frozen neurons and may be trained.

    The rows of LoRA factors that act on frozen neurons are set to zero.
    """
    if not isinstance(model, PeftModel):
        found = frozen_rows(model, mlps, frozen)
        return [(model.get_parameter(name), axis, rows) for name, (axis, rows) in found.items()]
    places = []
    inner: Any = model.get_base_model()
    for mlp in mlps:
        if mlp.layer not in frozen:
            continue
        neurons = frozen[mlp.layer].nonzero().squeeze(1)
        for name, axis in [*((name, 0) for name in mlp.ins), (mlp.down, 1)]:
            module = inner.get_submodule(name)
            if not hasattr(module, "lora_A"):
                continue
            factor = (module.lora_B if axis == 0 else module.lora_A)[model.active_adapter].weight
            copies = factor.shape[0] // mlp.neurons if axis == 0 else 1
            rows = torch.cat([neurons + copy * mlp.neurons for copy in range(copies)])
            with torch.no_grad():  # B starts at zero, A at random
                factor.index_fill_(axis, rows.to(factor.device), 0.0)
            places.append((factor, axis, rows))
    return places


def frozen_rows(
    model: torch.nn.Module, mlps: Sequence[MLP], frozen: Mapping[int, Tensor]
) -> dict[str, tuple[int, Tensor]]:
    """Return (axis, indices along it) of the frozen neurons by the name of each of their weights and biases.

    ``frozen``: (neurons,) bool by layer. The model has no adapters.
    """
    found = {}
    for mlp in mlps:
        if mlp.layer in frozen:
            neurons = frozen[mlp.layer].nonzero().squeeze(1)
            for part in slices(model, mlp):
                rows = torch.cat([neurons + copy * mlp.neurons for copy in range(part.copies)])
                found[part.parameter] = (part.axis, rows)
    return found


def _clearing_hook(axis: int, rows: Tensor) -> Any:
    """A hook that sets these rows of a gradient to 0."""
    return lambda gradient: gradient.index_fill(axis, rows, 0.0)


def choose_frozen(useful: Mapping[int, Tensor], scores: Mapping[int, Tensor], how: str, seed: int) -> dict[int, Tensor]:
    """Return the neurons to freeze, (neurons,) bool by layer.

    ``how``: ``useful`` freezes the ``useful`` ones. The controls freeze as many others in each layer: ``random`` draws
    them, ``inverse`` takes those with the lowest scores. ``none`` freezes nothing.
    """
    if how == "useful":
        return dict(useful)
    generator = torch.Generator().manual_seed(seed)
    frozen = {}
    for layer in sorted(useful):
        size, count = len(useful[layer]), int(useful[layer].sum()) if how != "none" else 0
        order = torch.randperm(size, generator=generator) if how == "random" else scores[layer].argsort(stable=True)
        frozen[layer] = torch.zeros(size, dtype=torch.bool).index_fill(0, order[:count], True)
    return frozen
