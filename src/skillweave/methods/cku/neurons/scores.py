"""How much each neuron of an MLP matters to some data, and which neurons matter most.

[digest] CKU scores neurons on useful data and freezes the best; its formula is not public. The scorers here are
[ours], after published ways to prune: each is a pure function of what one layer did on the data.
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
"""Batches of ``input_ids``, ``attention_mask`` and ``labels`` (-100 where nothing is asked), each (B, T) int64."""

_FLOOR = 0.01
"""``contrast``: below this part of its layer's mean a score is no use at all; a ratio of two such would be noise."""


@dataclass(frozen=True)
class Statistics:
    """What the I neurons of one layer's MLP did on some data; sums are float32, on the layer's device."""

    tokens: int
    """Tokens seen, padding left out"""
    steps: int
    """Accumulation steps: batches with at least one label"""
    absolute: torch.Tensor
    """(I,) sum over tokens of |h|, h what the neurons pass on to ``down``"""
    squared: torch.Tensor
    """(I,) sum over tokens of h^2"""
    inputs: tuple[torch.Tensor, ...]
    """(H,) for each of ``ins``: sum over tokens of its input's squares"""
    ins: tuple[torch.Tensor, ...]
    """(copies, I, H): the weights of ``ins``; views of the model's own"""
    down: torch.Tensor
    """(I, H): the weights of ``down``; a view of the model's own"""
    saliency: torch.Tensor
    """(I,) sum over steps and the neuron's parameters w of |w * dL/dw|; 0 where no gradients were asked for"""
    gradient: torch.Tensor
    """(I,) sum over steps and the neuron's parameters of (dL/dw)^2; 0 where no gradients were asked for"""
    parameters: int
    """Parameters (weights and biases) a neuron has"""


def activation(statistics: Statistics) -> torch.Tensor:
    """Mean of |h_i| over tokens: (I,) float32."""
    return statistics.absolute / statistics.tokens


def wanda(statistics: Statistics) -> torch.Tensor:
    """Sum over the neuron's weights of |W_ij| * ||X_j||_2, X_j the weight's input on all tokens: (I,) float32.

    Wanda (Sun et al. 2023, 2306.11695, eq. 1) summed over a neuron [relative]. Biases have no input and count nothing.
    """
    score = statistics.down.abs().float().sum(dim=1) * statistics.squared.sqrt()
    for weight, squares in zip(statistics.ins, statistics.inputs, strict=True):
        score += (weight.abs().float() @ squares.sqrt()).sum(dim=0)
    return score


def snip(statistics: Statistics) -> torch.Tensor:
    """Sum over the neuron's parameters of |w * dL/dw|, absolute at each accumulation step: (I,) float32.

    SNIP (Lee et al. 2018, 1810.02340, eq. 6) summed over a neuron [relative].
    """
    return statistics.saliency


def fisher(statistics: Statistics) -> torch.Tensor:
    """Mean over accumulation steps and the neuron's parameters of (dL/dw)^2: (I,) float32.

    The diagonal of the empirical Fisher information where a step is one example [relative].
    """
    return statistics.gradient / (statistics.steps * statistics.parameters)


SCORERS: dict[str, Callable[[Statistics], torch.Tensor]] = {
    "activation": activation,
    "wanda": wanda,
    "snip": snip,
    "fisher": fisher,
}


def contrast(retain: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """How much more a neuron matters to the retain data than to the forget data: (I,) float32, nats [ours].

    ``retain`` and ``forget``: (I,) scores >= 0 of one layer's neurons, by one scorer. The logarithm of their ratio,
    each taken relative to its layer's mean and never below a hundredth of it: 0 for a neuron that both need alike, or
    neither.
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
    """Each chosen layer's scores on ``batches``, high where a neuron is needed: (neurons,) float32 on the CPU.

    ``scorer``: ``activation``, ``wanda``, ``snip``, ``fisher``, or ``contrast``, which compares the scorer ``of`` on
    ``batches`` (retain) and ``against`` (forget); the others take no ``against``. Each batch is one accumulation step;
    see :func:`gather` for what is read, and what stays as it was.
    """
    if scorer not in (*SCORERS, "contrast"):
        raise UserError(f"unknown scorer '{scorer}': {nearest(scorer, [*SCORERS, 'contrast'])}")
    if (scorer == "contrast") != (against is not None):
        raise ValueError("contrast, and no other scorer, needs the forget data: `against`")
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


def gather(model: Any, batches: Batches, layers: Sequence[int], *, gradients: bool) -> dict[int, Statistics]:
    """One pass over ``batches``, from which every scorer's result follows (``snip`` and ``fisher``: ``gradients``).

    Tokens whose ``attention_mask`` is 0 count nowhere. Gradients are those of a batch's mean cross-entropy, in nats,
    over its labelled tokens; they run back to the lowest of ``layers`` and no further, and one parameter's gradient at
    a time is held. The model, of any dtype and on any device, is left as it was: weights, gradients, what requires
    them, modes, hooks. A layer that the model has not, or batches with nothing to score: :class:`UserError`.
    """
    mlps = find_mlps(model)
    if beyond := [layer for layer in layers if not 0 <= layer < len(mlps)]:
        raise UserError(f"layers {beyond} are none of the model's: it has {len(mlps)}, from 0 to {len(mlps) - 1}")
    watched = {layer: _Watched(model, mlps[layer]) for layer in layers}
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
        raise UserError("there is nothing to score neurons on: no batch has a token that is not padding")
    if gradients and not steps:
        raise UserError("there is nothing to take gradients of: no batch has a label (all are -100)")
    return {layer: one.statistics(tokens, steps) for layer, one in watched.items()}


def per_neuron(values: torch.Tensor, where: Slice, neurons: int) -> torch.Tensor:
    """What stands in a parameter of the form of ``values``, summed for each neuron: (neurons,) float32."""
    return values.float().movedim(where.axis, 0).reshape(where.copies, neurons, -1).sum(dim=(0, 2))


def useful_neurons(
    scores: Mapping[int, torch.Tensor], ratio: float, scope: Literal["layer", "all"] = "layer"
) -> dict[int, torch.Tensor]:
    """The best ``round(ratio * n)`` of n neurons, in each layer or over all of them: (neurons,) bool for each layer.

    Of equal scores the lower layer and the lower index come first. [digest] 80% of the neurons are kept frozen.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"ratio {ratio} is no share of the neurons: expected 0 to 1")
    for layer, values in scores.items():
        if values.isnan().any():
            raise UserError(f"the scores of layer {layer} hold NaN: look for NaN in the model, or score in float32")
    if scope == "layer":
        return {layer: _best(values, ratio) for layer, values in scores.items()}
    order = sorted(scores)
    if not order:
        return {}
    masks = _best(torch.cat([scores[layer] for layer in order]), ratio).split([len(scores[layer]) for layer in order])
    return dict(zip(order, masks, strict=True))


def default_layers(count: int) -> list[int]:
    """The layers at 25 to 37.5% of a model's depth: [digest] 8 to 12 of 32, carried over to ``count`` layers [ours]."""
    return list(range(count // 4, 3 * count // 8 + 1))


def _best(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.sort(descending=True, stable=True).indices[: round(ratio * len(scores))]] = True
    return mask


def _loss(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats over the labelled tokens; NaN where there are none."""
    targets = labels[:, 1:]
    columns = (targets != -100).any(dim=0).nonzero().flatten()
    # Most models project onto the vocabulary only the positions they are asked for; the others do so with all.
    narrow = "logits_to_keep" in inspect.signature(model.forward).parameters and len(columns) > 0
    options = {"logits_to_keep": columns} if narrow else {}
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options).logits
    logits = logits if narrow else logits[:, columns]
    asked = targets[:, columns] != -100
    return functional.cross_entropy(logits[asked].float(), targets[:, columns][asked])


class _Watched:
    """The sums of one layer while the data streams by."""

    def __init__(self, model: nn.Module, mlp: MLP) -> None:
        self.mlp = mlp
        self.slices = slices(model, mlp)
        self.weights = {one.parameter: model.get_parameter(one.parameter) for one in self.slices}
        device = self.weights[self.slices[-1].parameter].device
        self.absolute, self.squared, self.saliency, self.gradient = torch.zeros(4, mlp.neurons, device=device)
        self.inputs = [torch.zeros((), device=device) for _ in mlp.ins]

    def see_input(self, ordinal: int, x: torch.Tensor) -> None:
        self.inputs[ordinal] = self.inputs[ordinal] + x.square().sum(dim=0)

    def see_neurons(self, h: torch.Tensor) -> None:
        self.absolute += h.abs().sum(dim=0)
        self.squared += h.square().sum(dim=0)

    def see_gradient(self, where: Slice, parameter: torch.Tensor) -> None:
        gradient = parameter.grad.float()  # type: ignore[union-attr]
        self.saliency += per_neuron((parameter.detach() * gradient).abs(), where, self.mlp.neurons)
        self.gradient += per_neuron(gradient.square(), where, self.mlp.neurons)
        parameter.grad = None

    def statistics(self, tokens: int, steps: int) -> Statistics:
        neurons = self.mlp.neurons
        views = [
            self.weights[one.parameter].detach().movedim(one.axis, 0).unflatten(0, (one.copies, neurons))
            for one in self.slices
        ]
        *ins, down = [view for view in views if view.ndim == 3]
        return Statistics(
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
    model: nn.Module, watched: Iterable[_Watched], gradients: bool, mask: Callable[[], torch.Tensor]
) -> Iterator[None]:
    """Let each of ``watched`` see its layer, unpadded tokens (``mask``, (B * T,) bool) in float32; then undo it all."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    handles: list[Any] = []

    def on_input(name: str, see: Callable[[torch.Tensor], None]) -> None:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].detach()
            see(x.reshape(-1, x.shape[-1])[mask().to(x.device)].float())

        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))

    def on_gradient(one: _Watched, where: Slice) -> None:
        weight = one.weights[where.parameter]
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(lambda parameter: one.see_gradient(where, parameter)))

    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for one in watched:
            on_input(one.mlp.down, one.see_neurons)
            for ordinal, name in enumerate(one.mlp.ins):
                on_input(name, lambda x, one=one, ordinal=ordinal: one.see_input(ordinal, x))  # type: ignore[misc]
            for where in one.slices if gradients else ():
                on_gradient(one, where)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
