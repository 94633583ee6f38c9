"""Frozen neurons: their weights are bit for bit the same after any training, whatever the optimiser does.

Two things are needed. Their gradients are cleared as they are made, before anything sees them: a gradient that is only
cleared after clipping has by its length already shrunk the others. And their weights are put back after every step: an
optimiser moves weights without a gradient too, by weight decay or by what it remembers.
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
    """Keeps the chosen neurons of a model as they are while anything else of it is trained.

    ``frozen``: (neurons,) bool by layer. In a model with LoRA adapters a neuron is frozen by the adapters leaving its
    weights alone: row i of B is zero where the neuron is an output of the matrix, column i of A where it is an input,
    and both stay so. Parameters that are not trained need nothing. To be made before the optimiser is, and given to
    the trainer as a callback. Raises :class:`UserError` for a model that is spread over processes piece by piece.
    """

    def __init__(self, model: Any, mlps: Sequence[MLP], frozen: Mapping[int, Tensor]) -> None:
        self._kept: list[tuple[torch.nn.Parameter, int, Tensor, Tensor]] = []
        for parameter, axis, rows in _places(model, mlps, frozen):
            if not parameter.requires_grad or not len(rows):
                continue
            rows = rows.to(parameter.device)
            self._kept.append((parameter, axis, rows, parameter.detach().index_select(axis, rows).clone()))
            parameter.register_hook(_without(parameter, axis, rows))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the frozen weights back."""
        with torch.no_grad():
            for parameter, axis, rows, values in self._kept:
                parameter.index_copy_(axis, rows, values)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A model whose parameters are cut up has no whole rows to put back."""
        refuse_cut_up([parameter for parameter, *_ in self._kept])


def refuse_cut_up(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Raise :class:`UserError` where a process holds only a part of a parameter."""
    if any(parameter.numel() == 0 or hasattr(parameter, "device_mesh") for parameter in parameters):
        raise UserError(
            "unlearning needs every process to hold the whole model: FSDP and DeepSpeed's stage 3 cut it up. Train "
            "with plain data parallelism, or with train: lora on the cards you have"
        )


def _places(
    model: Any, mlps: Sequence[MLP], frozen: Mapping[int, Tensor]
) -> list[tuple[torch.nn.Parameter, int, Tensor]]:
    """(parameter, axis, indices along it) of all that belongs to the frozen neurons and may be trained."""
    places = []
    chosen = [(mlp, frozen[mlp.layer].nonzero().squeeze(1)) for mlp in mlps if mlp.layer in frozen]
    if not isinstance(model, PeftModel):
        for mlp, neurons in chosen:
            for part in slices(model, mlp):
                rows = torch.cat([neurons + copy * mlp.neurons for copy in range(part.copies)])
                places.append((model.get_parameter(part.parameter), part.axis, rows))
        return places
    inner: Any = model.get_base_model()
    for mlp, neurons in chosen:
        for name, axis in [*((name, 0) for name in mlp.ins), (mlp.down, 1)]:
            module = inner.get_submodule(name)
            if not hasattr(module, "lora_A"):
                continue
            factor = (module.lora_B if axis == 0 else module.lora_A)[model.active_adapter].weight
            copies = factor.shape[0] // mlp.neurons if axis == 0 else 1
            rows = torch.cat([neurons + copy * mlp.neurons for copy in range(copies)])
            with torch.no_grad():  # B begins at zero, A at random
                factor.index_fill_(axis, rows.to(factor.device), 0.0)
            places.append((factor, axis, rows))
    return places


def _without(parameter: torch.nn.Parameter, axis: int, rows: Tensor) -> Any:
    """A hook that clears these rows of a gradient."""
    return lambda gradient: gradient.index_fill(axis, rows, 0.0)


def choose_frozen(useful: Mapping[int, Tensor], scores: Mapping[int, Tensor], how: str, seed: int) -> dict[int, Tensor]:
    """The neurons to freeze, (neurons,) bool by layer: the ``useful`` ones, or as many others in each layer.

    ``random`` draws them, ``inverse`` takes those with the lowest scores, ``none`` freezes nothing [controls].
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
