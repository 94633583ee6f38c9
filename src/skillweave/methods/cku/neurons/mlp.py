"""The MLPs of any decoder, found by what its linear layers do, and the weights that each of their neurons is.

No model's names are known here. In one forward pass over a few tokens every linear layer's output is replaced by fixed
numbers, so that a linear layer's input shows which others feed it directly, and nothing else. The neurons of an MLP
are then what enters a linear layer X if

- each linear layer that feeds X feeds it token by token and feature by feature (in attention a value reaches the later
  tokens, a query a whole head), and
- nothing else does: on other token ids X's input stays the same (a gate upon attention's output fails here, as does
  whatever reads the residual stream).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from skillweave.errors import UserError

_TOKENS = 4
_AT = 1
"""The token whose features are changed: neither the first nor the last, where attention, too, stays at its place."""


@dataclass(frozen=True)
class MLP:
    """The MLP of one layer. A neuron of it is a feature of ``down``'s input."""

    layer: int
    ins: tuple[str, ...]
    """Names of the linear modules that feed the neurons: gate and up, or one in which both are fused, or one alone."""
    down: str
    """Name of the linear module that the neurons feed."""
    neurons: int


@dataclass(frozen=True)
class Slice:
    """Where the neurons lie in one parameter: neuron i at i, neurons + i, ... of ``axis``, ``copies`` in all."""

    parameter: str
    """Full name, as in ``model.named_parameters()``"""
    axis: int
    copies: int


def find_mlps(model: Any) -> list[MLP]:
    """The MLP of each of a causal language model's layers, in order. The model may be of any dtype, on any device.

    It may also be one that PEFT has put adapters into: a linear layer then counts with its adapter. A
    :class:`UserError` says which layer has no MLP that fits, and why: a mixture of experts, for one, where it hangs on
    the router which neurons a token meets.
    """
    path, blocks = _blocks(model)
    for layer, block in enumerate(blocks):
        _refuse_experts(layer, block)
    linears = [_linears(block, f"{path}.{layer}") for layer, block in enumerate(blocks)]
    seen = _probe(model, linears)
    return [_mlp(layer, list(names), seen) for layer, names in enumerate(linears)]


def slices(model: nn.Module, mlp: MLP) -> list[Slice]:
    """The weights and biases that belong to the neurons of ``mlp``; of the base layer where one bears an adapter.

    ``down``'s bias belongs to no neuron.
    """
    found = []
    for name in mlp.ins:
        name, module = _stored(model, name)
        axis = 1 if isinstance(module, Conv1D) else 0
        copies = module.weight.shape[axis] // mlp.neurons
        found.append(Slice(f"{name}.weight", axis, copies))
        if module.bias is not None:
            found.append(Slice(f"{name}.bias", 0, copies))
    name, module = _stored(model, mlp.down)
    found.append(Slice(f"{name}.weight", 0 if isinstance(module, Conv1D) else 1, 1))
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards each in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Name and modules of the decoder's blocks: the outermost list of as many as the config has layers."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    fit = [
        (name, module) for name, module in lists if len(module) == count and all(_linears(block) for block in module)
    ]
    fit = [(name, module) for name, module in fit if not any(name.startswith(f"{outer}.") for outer, _ in fit)]
    if len(fit) != 1:
        lengths = ", ".join(f"{name} ({len(module)})" for name, module in lists) or "none"
        raise UserError(
            f"expected one list of {count} decoder layers in {type(model).__name__}, found {len(fit)} "
            f"(its lists of modules: {lengths}): take a causal language model of transformers"
        )
    return fit[0]


def _linears(block: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """A block's linear modules by full name; one with an adapter counts whole, its parts do not."""
    found: dict[str, nn.Module] = {}
    for name, module in block.named_modules(prefix=path):
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(getattr(module, "base_layer", module), nn.Linear | Conv1D):
            found[name] = module
    return found


def _refuse_experts(layer: int, block: nn.Module) -> None:
    """Experts, the shared ones of such a layer included, are no MLP that every token meets."""
    for name, parameter in block.named_parameters():
        if "expert" in name:
            raise UserError(
                f"layer {layer} is a mixture of experts ({name}, {' x '.join(map(str, parameter.shape))}): its router "
                "decides which neurons a token meets, and none can be scored for all; take a dense model"
            )


def _stored(model: nn.Module, name: str) -> tuple[str, Any]:
    """Name and module of the linear layer itself, where ``name`` may be one with an adapter."""
    module = model.get_submodule(name)
    return (f"{name}.base_layer", module.base_layer) if hasattr(module, "base_layer") else (name, module)


@dataclass(frozen=True)
class _Seen:
    """What a linear module met in the probing pass."""

    rows: list[int]
    """The rows in which one of its outputs was changed."""
    changed: list[int]
    """In each row, how many numbers of its input differ from the first row's"""
    place: list[int]
    """and which is the first that does, of all tokens' features in a line."""
    size_in: int
    size_out: int


def _tried(size: int) -> tuple[int, int, int]:
    """The features that are changed; the middle one tells halves that lie one after the other from interleaved ones."""
    return 0, size // 2, size - 1


@torch.no_grad()
def _probe(model: Any, linears: list[dict[str, nn.Module]]) -> dict[str, _Seen]:
    """One pass over a batch in which every row tries one thing. A module that routed tokens call is not in the result.

    Row 0 is as it is, row 1 has other token ids; from row 2 on, one feature of one linear layer's output is doubled.
    All layers try at once: a true MLP's neurons see the linear layers of their own block alone.
    """
    count = 2 + 3 * max(len(names) for names in linears)
    seen: dict[str, _Seen] = {}

    def watch(name: str, ordinal: int) -> Any:
        rows = [2 + 3 * ordinal + trial for trial in range(3)]

        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            size = output.shape[-1]
            if output.numel() != count * _TOKENS * size:
                return None
            inputs = args[0].reshape(count, -1)
            # A few units in the last place are no change: the same number may be rounded otherwise at a tensor's end.
            same = (inputs - inputs[:1]).abs() <= 4 * torch.finfo(inputs.dtype).eps * inputs[:1].abs()
            differs = ~same
            places = differs.int().argmax(dim=1)
            seen[name] = _Seen(rows, differs.sum(dim=1).tolist(), places.tolist(), args[0].shape[-1], size)
            # Of one sign and well away from 0, where an activation function or the other factor could hide a change.
            fixed = torch.rand(_TOKENS, size, generator=torch.Generator().manual_seed(size)) + 0.5
            fixed = fixed.repeat(count, 1, 1)
            for row, feature in zip(rows, _tried(size), strict=True):
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
    return seen


def _mlp(layer: int, names: list[str], seen: dict[str, _Seen]) -> MLP:
    found = []
    for down in names:
        ins = _feeding(down, names, seen)
        if ins:
            found.append(MLP(layer, ins, down, seen[down].size_in))
    if len(found) == 1:
        return found[0]
    if found:
        why = "several do: " + ", ".join(mlp.down for mlp in found)
    else:
        why = "none does (a norm upon the neurons would mix them); its linear layers: " + ", ".join(names)
    raise UserError(
        f"layer {layer}: expected one linear layer whose input is the neurons of an MLP, but {why}; take another model"
    )


def _feeding(down: str, names: list[str], seen: dict[str, _Seen]) -> tuple[str, ...]:
    """The linear modules whose outputs make neurons of ``down``'s input; none if it is not the end of an MLP."""
    if down not in seen or seen[down].changed[1]:
        return ()
    target, ins = seen[down], []
    for name in names:
        if name not in seen or not any(target.changed[row] for row in seen[name].rows):
            continue
        source = seen[name]
        wanted = [_AT * target.size_in + feature % target.size_in for feature in _tried(source.size_out)]
        alone = all(target.changed[row] == 1 for row in source.rows)
        fits = source.size_in == target.size_out and source.size_out % target.size_in == 0
        if not (fits and alone and [target.place[row] for row in source.rows] == wanted):
            return ()
        ins.append(name)
    return tuple(ins)
