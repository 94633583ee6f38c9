"""Score how much each neuron of an MLP matters to some data, and choose the neurons that matter most.

CKU scores neurons on useful data and freezes the best [digest], but its formula is not public. The scorers here are
[ours], after published pruning criteria. Each is a pure function of the statistics of one layer on the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from skillweave.errors import UserError, nearest
from skillweave.methods.cku.neurons.mlp import MLP, Slice, evaluating, find_mlps, slices

Batches = Iterable[Mapping[str, torch.Tensor]]
"""Batches of ``input_ids``, ``attention_mask`` and ``labels`` (-100 where there is no target), each (B, T) int64."""

_FLOOR = 0.01
"""``contrast`` raises scores to this fraction of their layer's mean: a ratio of two smaller ones would be noise."""


@dataclass(frozen=True)
class NeuronStatistics:
    """Statistics of the I neurons of one layer's MLP on some data. Sums are float32, on the layer's device."""

    tokens: int
    """Number of tokens, without padding"""
    steps: int
    """Number of accumulation steps, which are batches with at least one label"""
    absolute: torch.Tensor
    """(I,) sum over tokens of |h|, where h is the input of ``down``"""
    squared: torch.Tensor
    """(I,) sum over tokens of h^2"""
    inputs: tuple[torch.Tensor, ...]
    """(H,) for each of ``ins``: sum over tokens of its squared input"""
    ins: tuple[torch.Tensor, ...]
    """(copies, I, H): the weights of ``ins``, as views of the model's tensors"""
    down: torch.Tensor
    """(I, H): the weights of ``down``, as a view of the model's tensor"""
    saliency: torch.Tensor
    """(I,) sum over steps and over the neuron's parameters w of |w * dL/dw|; 0 without gradients"""
    gradient: torch.Tensor
    """(I,) sum over steps and over the neuron's parameters w of (dL/dw)^2; 0 without gradients"""
    parameters: int
    """Number of parameters (weights and biases) of a neuron"""


def activation(statistics: NeuronStatistics) -> torch.Tensor:
    """Mean of |h_i| over tokens: (I,) float32."""
    return statistics.absolute / statistics.tokens


def wanda(statistics: NeuronStatistics) -> torch.Tensor:
    """Sum over the neuron's weights of |W_ij| * ||X_j||_2: (I,) float32. X_j is the weight's input on all tokens.

    This is Wanda (Sun et al. 2023, 2306.11695, eq. 1), summed over a neuron [relative]. Biases have no input and do not
    count.
    """
    score = statistics.down.abs().float().sum(dim=1) * statistics.squared.sqrt()
    for weight, squares in zip(statistics.ins, statistics.inputs, strict=True):
        score += (weight.abs().float() @ squares.sqrt()).sum(dim=0)
    return score


def snip(statistics: NeuronStatistics) -> torch.Tensor:
    """Sum over accumulation steps and over the neuron's parameters w of |w * dL/dw|: (I,) float32.

    This is SNIP (Lee et al. 2018, 1810.02340, eq. 6), summed over a neuron [relative]. The absolute value is taken at
    each step.
    """
    return statistics.saliency


def fisher(statistics: NeuronStatistics) -> torch.Tensor:
    """Mean over accumulation steps and over the neuron's parameters w of (dL/dw)^2: (I,) float32.

    If a step is one example, this is the diagonal of the empirical Fisher information [relative].
    """
    return statistics.gradient / (statistics.steps * statistics.parameters)


SCORERS: dict[str, Callable[[NeuronStatistics], torch.Tensor]] = {
    "activation": activation,
    "wanda": wanda,
    "snip": snip,
    "fisher": fisher,
}


def contrast(retain: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """How much more a neuron matters to the retain data than to the forget data: (I,) float32, nats [ours].

    ``retain`` and ``forget``: (I,) scores >= 0 of one layer's neurons, by one scorer. Each is divided by its layer's
    mean and raised to at least 0.01; the result is the logarithm of the ratio. It is 0 for a neuron that both sets need
    equally, or that neither needs.
    """
    parts = [scores.float() / scores.float().mean().clamp(min=torch.finfo().tiny) for scores in (retain, forget)]
    return (parts[0].clamp(min=_FLOOR) / parts[1].clamp(min=_FLOOR)).log()


def neuron_scores(
    model: Any,
    batches: Batches,
    *,
    scorer: str,
    layers: Sequence[int],
    against: Batches | None = None,
    of: str = "snip",
) -> dict[int, torch.Tensor]:
    """Return the scores of each chosen layer's neurons on ``batches``: (neurons,) float32 on the CPU.

    A high score means that the neuron is needed. Each batch is one accumulation step; :func:`gather` says what is read
    and what stays unchanged.

    - ``scorer``: ``activation``, ``wanda``, ``snip``, ``fisher`` or ``contrast``
    - ``of``, ``against``: ``contrast`` compares the scorer ``of`` on ``batches`` (retain) and ``against`` (forget); the
      other scorers take no ``against``
    """
    if scorer not in (*SCORERS, "contrast"):
        raise UserError(f"unknown scorer '{scorer}': {nearest(scorer, [*SCORERS, 'contrast'])}")
    if (scorer == "contrast") != (against is not None):
        raise ValueError("`against`, the forget data, must be given for contrast and for no other scorer")
    single = of if scorer == "contrast" else scorer
    if single not in SCORERS:
        raise UserError(f"contrast of an unknown scorer '{single}': {nearest(single, SCORERS)}")

    def scores(data: Batches) -> dict[int, torch.Tensor]:
        gathered = gather(model, data, layers, gradients=single in ("snip", "fisher"))
        return {layer: SCORERS[single](statistics).cpu() for layer, statistics in gathered.items()}

    with torch.no_grad():
        retain = scores(batches)
        if against is None:
            return retain
        forget = scores(against)
        return {layer: contrast(retain[layer], forget[layer]) for layer in retain}


def gather(model: Any, batches: Batches, layers: Sequence[int], *, gradients: bool) -> dict[int, NeuronStatistics]:
    """Return the statistics of the chosen layers from one pass over ``batches``; every scorer works on them.

    - ``gradients``: whether to compute gradients, which ``snip`` and ``fisher`` need. They are those of each batch's
      mean cross-entropy (nats) over its labelled tokens. Backpropagation ends at the lowest of ``layers``, and only one
      parameter's gradient is in memory at a time.
    - Tokens whose ``attention_mask`` is 0 do not count.
    - The model may have any dtype and be on any device. Its weights, gradients, ``requires_grad`` flags, modes and
      hooks are left unchanged.

    Raises :class:`UserError` for a layer that the model does not have, and for batches with nothing to score.
    """
    mlps = find_mlps(model)
    if beyond := [layer for layer in layers if not 0 <= layer < len(mlps)]:
        raise UserError(f"the model does not have the layers {beyond}: it has {len(mlps)}, from 0 to {len(mlps) - 1}")
    watched = {layer: _LayerSums(model, mlps[layer]) for layer in layers}
    tokens = steps = 0
    device = next(model.parameters()).device
    mask = torch.empty(0)
    with (
        evaluating(model),
        _hooked(model, watched.values(), gradients, lambda: mask),
        torch.set_grad_enabled(gradients),
    ):
        for batch in batches:
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")}
            labelled = bool((inputs["labels"][:, 1:] != -100).any())
            mask = inputs["attention_mask"].flatten().bool()
            tokens += int(mask.sum())
            steps += labelled
            loss = _loss(model, **inputs)
            if gradients and labelled:
                loss.backward()
    if not tokens:
        raise UserError("no neuron can be scored: no batch has a token that is not padding")
    if gradients and not steps:
        raise UserError("there are no gradients to score by: no batch has a label (all are -100)")
    return {layer: one.statistics(tokens, steps) for layer, one in watched.items()}


def per_neuron(values: torch.Tensor, where: Slice, neurons: int) -> torch.Tensor:
    """Return the sum of ``values``, which has the shape of a parameter, over each neuron: (neurons,) float32."""
    return values.float().movedim(where.axis, 0).reshape(where.copies, neurons, -1).sum(dim=(0, 2))


def useful_neurons(
    scores: Mapping[int, torch.Tensor], ratio: float, scope: Literal["layer", "all"] = "layer"
) -> dict[int, torch.Tensor]:
    """Return the best ``round(ratio * n)`` of n neurons: (neurons,) bool for each layer.

    ``scope``: whether the ratio holds in each layer or over all of them. Among equal scores the lower layer and the
    lower index come first. The paper freezes 80% of the neurons [digest].
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"ratio {ratio} is not a share of the neurons: set it between 0 and 1")
    for layer, values in scores.items():
        if values.isnan().any():
            raise UserError(f"the scores of layer {layer} contain NaN: check the model for NaN, or score in float32")
    if scope == "layer":
        return {layer: _best(values, ratio) for layer, values in scores.items()}
    order = sorted(scores)
    if not order:
        return {}
    masks = _best(torch.cat([scores[layer] for layer in order]), ratio).split([len(scores[layer]) for layer in order])
    return dict(zip(order, masks, strict=True))


def default_layers(count: int) -> list[int]:
    """Return the layers at 25% to 37.5% of the depth: 8 to 12 of 32 [digest], scaled to ``count`` layers [ours]."""
    return list(range(count // 4, 3 * count // 8 + 1))


def _best(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.sort(descending=True, stable=True).indices[: round(ratio * len(scores))]] = True
    return mask


def _loss(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats over the labelled tokens; NaN where there are none."""
    targets = labels[:, 1:]
    columns = (targets != -100).any(dim=0).nonzero().flatten()
    # Most models can project only chosen positions onto the vocabulary; the others always project all of them.
    narrow = "logits_to_keep" in inspect.signature(model.forward).parameters and len(columns) > 0
    options = {"logits_to_keep": columns} if narrow else {}
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options).logits
    logits = logits if narrow else logits[:, columns]
    labelled = targets[:, columns] != -100
    return functional.cross_entropy(logits[labelled].float(), targets[:, columns][labelled])


class _LayerSums:
    """The running sums of one layer."""

    def __init__(self, model: nn.Module, mlp: MLP) -> None:
        self.mlp = mlp
        self.slices = slices(model, mlp)
        self.weights = {one.parameter: model.get_parameter(one.parameter) for one in self.slices}
        device = self.weights[self.slices[-1].parameter].device
        self.absolute, self.squared, self.saliency, self.gradient = torch.zeros(4, mlp.neurons, device=device)
        self.inputs = [torch.zeros((), device=device) for _ in mlp.ins]

    def add_input(self, ordinal: int, x: torch.Tensor) -> None:
        self.inputs[ordinal] = self.inputs[ordinal] + x.square().sum(dim=0)

    def add_neurons(self, h: torch.Tensor) -> None:
        self.absolute += h.abs().sum(dim=0)
        self.squared += h.square().sum(dim=0)

    def add_gradient(self, where: Slice, parameter: torch.Tensor) -> None:
        gradient = parameter.grad.float()  # type: ignore[union-attr]
        self.saliency += per_neuron((parameter.detach() * gradient).abs(), where, self.mlp.neurons)
        self.gradient += per_neuron(gradient.square(), where, self.mlp.neurons)
        parameter.grad = None

    def statistics(self, tokens: int, steps: int) -> NeuronStatistics:
        neurons = self.mlp.neurons
        views = [
            self.weights[one.parameter].detach().movedim(one.axis, 0).unflatten(0, (one.copies, neurons))
            for one in self.slices
        ]
        *ins, down = [view for view in views if view.ndim == 3]
        return NeuronStatistics(
            tokens=tokens,
            steps=steps,
            absolute=self.absolute,
            squared=self.squared,
            inputs=tuple(self.inputs),
            ins=tuple(ins),
            down=down[0],
            saliency=self.saliency,
            gradient=self.gradient,
            parameters=sum(weight.numel() for weight in self.weights.values()) // neurons,
        )


@contextmanager
def _hooked(
    model: nn.Module, watched: Iterable[_LayerSums], gradients: bool, mask: Callable[[], torch.Tensor]
) -> Iterator[None]:
    """Add what each of ``watched``'s layers does to its sums; on exit restore the model.

    ``mask`` gives which tokens of the current batch are not padding, (B * T,) bool; only those are added, in float32.
    """
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    handles: list[Any] = []

    def on_input(name: str, add: Callable[[torch.Tensor], None]) -> None:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].detach()
            add(x.reshape(-1, x.shape[-1])[mask().to(x.device)].float())

        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))

    def on_gradient(one: _LayerSums, where: Slice) -> None:
        weight = one.weights[where.parameter]
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(lambda parameter: one.add_gradient(where, parameter)))

    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for one in watched:
            on_input(one.mlp.down, one.add_neurons)
            for ordinal, name in enumerate(one.mlp.ins):
                on_input(name, lambda x, one=one, ordinal=ordinal: one.add_input(ordinal, x))  # type: ignore[misc]
            for where in one.slices if gradients else ():
                on_gradient(one, where)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
