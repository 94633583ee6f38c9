"""Find the MLPs of any decoder by the behaviour of its linear layers, and the weights that belong to each neuron.

The code knows no model's module names. In one forward pass over a few tokens, the output of every linear layer is
replaced by fixed numbers. The input of a linear layer then shows which other linear layers feed it directly, and
nothing else. The input of a linear layer X is the neurons of an MLP if

- each linear layer that feeds X does so token by token and feature by feature (in attention, a value reaches later
  tokens and a query reaches a whole head), and
- nothing else feeds X: with other token ids its input stays the same. A gate on attention's output fails this test, and
  so does a layer that reads the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from skillweave.base.sizes import layer_count
from skillweave.errors import UserError

_TOKENS = 4
_AT = 1
"""The token whose features are changed. At the first and the last token attention, too, would reach no other token."""


@dataclass(frozen=True)
class MLP:
    """The MLP of one layer. Its neurons are the features of ``down``'s input."""

    layer: int
    ins: tuple[str, ...]
    """Names of the linear modules that feed the neurons: gate and up, or one that fuses both, or a single one"""
    down: str
    """Name of the linear module that the neurons feed"""
    neurons: int


@dataclass(frozen=True)
class Slice:
    """Where the neurons are in one parameter: neuron i is at i, neurons + i, ... along ``axis``, ``copies`` times."""

    parameter: str
    """Full name, as in ``model.named_parameters()``"""
    axis: int
    copies: int


def find_mlps(model: Any) -> list[MLP]:
    """Return the MLP of each layer of a causal language model, in order.

    The model may have any dtype and be on any device. It may have PEFT adapters: a linear layer then counts with its
    adapter. Raises :class:`UserError` with the layer and the reason if a layer has no such MLP. One example is a
    mixture of experts, where the router decides which neurons a token uses.
    """
    path, blocks = _blocks(model)
    for layer, block in enumerate(blocks):
        _refuse_experts(layer, block)
    linears = [_linears(block, f"{path}.{layer}") for layer, block in enumerate(blocks)]
    observed = _probe(model, linears)
    return [_mlp(layer, list(names), observed) for layer, names in enumerate(linears)]


def slices(model: nn.Module, mlp: MLP) -> list[Slice]:
    """Return the weights and biases that belong to the neurons of ``mlp``.

    For a layer with an adapter they are those of its base layer. ``down``'s bias belongs to no neuron.
    """
    parts = []
    for name in mlp.ins:
        name, module = _base_layer(model, name)
        axis = 1 if isinstance(module, Conv1D) else 0
        copies = module.weight.shape[axis] // mlp.neurons
        parts.append(Slice(f"{name}.weight", axis, copies))
        if module.bias is not None:
            parts.append(Slice(f"{name}.bias", 0, copies))
    name, module = _base_layer(model, mlp.down)
    parts.append(Slice(f"{name}.weight", 0 if isinstance(module, Conv1D) else 1, 1))
    return parts


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and restore each one's mode on exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Return the name and the modules of the decoder's blocks: the outermost list as long as the config has layers."""
    count = layer_count(model)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    fit = [
        (name, module) for name, module in lists if len(module) == count and all(_linears(block) for block in module)
    ]
    fit = [(name, module) for name, module in fit if not any(name.startswith(f"{outer}.") for outer, _ in fit)]
    if len(fit) != 1:
        lengths = ", ".join(f"{name} ({len(module)})" for name, module in lists) or "none"
        raise UserError(
            f"expected one list of {count} decoder layers in {type(model).__name__}, found {len(fit)} "
            f"(its lists of modules: {lengths}): use a causal language model of transformers"
        )
    return fit[0]


def _linears(block: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """Return a block's linear modules by full name. A module with an adapter counts as one; its parts do not count."""
    linears: dict[str, nn.Module] = {}
    for name, module in block.named_modules(prefix=path):
        inside = any(name.startswith(f"{outer}.") for outer in linears)
        if not inside and isinstance(getattr(module, "base_layer", module), nn.Linear | Conv1D):
            linears[name] = module
    return linears


def _refuse_experts(layer: int, block: nn.Module) -> None:
    """Raise :class:`UserError` for a layer with experts. Its shared experts do not count as an MLP either."""
    for name, parameter in block.named_parameters():
        if "expert" in name:
            raise UserError(
                f"layer {layer} is a mixture of experts ({name}, {' x '.join(map(str, parameter.shape))}): its router "
                "decides which neurons a token uses, so no neuron can be scored on all tokens; use a dense model"
            )


def _base_layer(model: nn.Module, name: str) -> tuple[str, Any]:
    """Return the name and the module of the linear layer itself; ``name`` may be one with an adapter."""
    module = model.get_submodule(name)
    return (f"{name}.base_layer", module.base_layer) if hasattr(module, "base_layer") else (name, module)


@dataclass(frozen=True)
class _Observation:
    """What was observed at a linear module in the probing pass."""

    rows: list[int]
    """The rows in which one of its outputs was changed"""
    changed: list[int]
    """For each row, how many numbers of its input differ from those of row 0"""
    place: list[int]
    """For each row, the index of the first number that differs, with the features of all tokens in one line"""
    size_in: int
    size_out: int


def _probed_features(size: int) -> tuple[int, int, int]:
    """The features that are changed. The middle one tells apart two fused halves in a row and interleaved ones."""
    return 0, size // 2, size - 1


@torch.no_grad()
def _probe(model: Any, linears: list[dict[str, nn.Module]]) -> dict[str, _Observation]:
    """Run one pass over a batch in which every row tests one thing, and return what each linear module observed.

    Row 0 is unchanged, row 1 has other token ids, and from row 2 on one feature of one linear layer's output is
    doubled. All layers are tested at once, because the neurons of an MLP depend only on the linear layers of their own
    block. A module that is called on routed tokens is not in the result.
    """
    count = 2 + 3 * max(len(names) for names in linears)
    observed: dict[str, _Observation] = {}

    def watch(name: str, ordinal: int) -> Any:
        rows = [2 + 3 * ordinal + trial for trial in range(3)]

        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            size = output.shape[-1]
            if output.numel() != count * _TOKENS * size:
                return None
            inputs = args[0].reshape(count, -1)
            # A few units in the last place are no change: rounding may differ at the end of a tensor.
            same = (inputs - inputs[:1]).abs() <= 4 * torch.finfo(inputs.dtype).eps * inputs[:1].abs()
            differs = ~same
            places = differs.int().argmax(dim=1)
            observed[name] = _Observation(rows, differs.sum(dim=1).tolist(), places.tolist(), args[0].shape[-1], size)
            # All numbers are positive and far from 0, where an activation or the other factor could hide a change.
            fixed = torch.rand(_TOKENS, size, generator=torch.Generator().manual_seed(size)) + 0.5
            fixed = fixed.repeat(count, 1, 1)
            for row, feature in zip(rows, _probed_features(size), strict=True):
                fixed[row, _AT, feature] *= 2
            return fixed.to(output).reshape(output.shape)

        return hook

    embedding = model.get_input_embeddings().weight
    ids = torch.arange(_TOKENS).repeat(count, 1)
    ids[1] += _TOKENS
    ids = (ids % len(embedding)).to(embedding.device)
    handles = [
        module.register_forward_hook(watch(name, ordinal))
        for names in linears
        for ordinal, (name, module) in enumerate(names.items())
    ]
    try:
        with evaluating(model):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return observed


def _mlp(layer: int, names: list[str], observed: dict[str, _Observation]) -> MLP:
    mlps = []
    for down in names:
        ins = _feeding(down, names, observed)
        if ins:
            mlps.append(MLP(layer, ins, down, observed[down].size_in))
    if len(mlps) == 1:
        return mlps[0]
    if mlps:
        reason = "several do: " + ", ".join(mlp.down for mlp in mlps)
    else:
        reason = "none does (a norm on the neurons would mix them); its linear layers: " + ", ".join(names)
    raise UserError(
        f"layer {layer}: expected one linear layer whose input is the neurons of an MLP, but {reason}; use another "
        "model"
    )


def _feeding(down: str, names: list[str], observed: dict[str, _Observation]) -> tuple[str, ...]:
    """Return the linear modules that feed the neurons of ``down``'s input; none if it is not the end of an MLP."""
    if down not in observed or observed[down].changed[1]:
        return ()
    target, ins = observed[down], []
    for name in names:
        if name not in observed or not any(target.changed[row] for row in observed[name].rows):
            continue
        source = observed[name]
        expected = [_AT * target.size_in + feature % target.size_in for feature in _probed_features(source.size_out)]
        alone = all(target.changed[row] == 1 for row in source.rows)
        fits = source.size_in == target.size_out and source.size_out % target.size_in == 0
        if not (fits and alone and [target.place[row] for row in source.rows] == expected):
            return ()
        ins.append(name)
    return tuple(ins)
