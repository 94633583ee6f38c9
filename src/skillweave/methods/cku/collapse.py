"""CIR, the collapse of irrelevant representations: the forget gradient without what all the data has in common.

[abstract, arXiv 2509.11816] PCA on the activations and on the gradients of module outputs finds subspaces of common
representations, and these are collapsed before an update is computed. Unlearning then leaves general representations
alone, which fine-tuning would restore at once, and acts on what is specific to the facts.

The gradient of a linear layer's weight is a sum over tokens of (output gradient) x (activation). To collapse both for
every token is the same as to multiply that sum by two projections, so no step needs the tokens:
:func:`collapsed_gradient`.

Where this differs from the authors' code [relative]:

- The subspaces are fitted once, on the model as it is before the unlearning; theirs are fitted anew in each epoch.
- They are those of retain and forget tokens together; theirs are of forget tokens.
- The mean and the principal directions are collapsed as one subspace; theirs one after another, and later versions
  scale all directions (Mahalanobis).
- The gradient is that of the answers' cross-entropy, whatever the forget loss is. Theirs is that of a loss which breaks
  the output of MLPs.
- The collapse goes together with the retain term, with sign agreement and with frozen neurons [ours].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from skillweave.base.safetensors_io import read_tensors, write_tensors
from skillweave.errors import UserError
from skillweave.methods.cku.neurons.mlp import evaluating

Batches = Iterable[Mapping[str, Tensor]]
"""Batches of ``input_ids``, ``attention_mask`` and ``labels`` (-100 where there is no target), each (B, T) int64."""

_FILE = "common.safetensors"
_NOTHING = 1e-9
"""A direction with at most this share of the largest variance is rounding noise."""


@dataclass(frozen=True)
class Common:
    """The common subspaces of a linear layer, as orthonormal columns: of its inputs (in, k), of its gradients (out, m).

    k or m may be 0.
    """

    inputs: Tensor
    outputs: Tensor


class TokenMoments:
    """The running mean and second moment of vectors, from which :func:`common_subspace` is computed; float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add vectors (N, size)."""
        wide = vectors.double().cpu()
        self.count += len(wide)
        self.total += wide.sum(dim=0)
        self.products += wide.T @ wide


def common_subspace(moments: TokenMoments, directions: int, live: Tensor | None = None) -> Tensor:
    """Return orthonormal columns that span the mean and the first principal directions: (size, k) float32.

    - ``directions``: how many principal directions; with 0 the mean, too, stays out and k is 0
    - ``live`` (size,) bool: coordinates that may change. The others count as 0 in every vector, so that the subspace
      has no part in them and a gradient that is 0 there stays 0 there.

    k is at most ``directions`` + 1, and less if the vectors have fewer directions.
    """
    size = len(moments.total)
    if not directions or not moments.count:
        return torch.zeros(size, 0)
    keep = torch.ones(size, dtype=torch.float64) if live is None else live.double()
    mean = moments.total / moments.count * keep
    covariance = moments.products / moments.count * keep[:, None] * keep - mean[:, None] * mean
    variances, vectors = torch.linalg.eigh(covariance)
    chosen = [vectors[:, at] for at in range(size - 1, size - 1 - min(directions, size), -1)]
    largest = max(float(variances[-1]), float(mean @ mean))
    columns = [
        column for column, variance in zip(chosen, variances.flip(0), strict=False) if variance > _NOTHING * largest
    ]
    basis = torch.stack(columns, dim=1) if columns else torch.zeros(size, 0, dtype=torch.float64)
    rest = mean - basis @ (basis.T @ mean)
    if float(rest @ rest) > _NOTHING * largest:
        basis = torch.cat([basis, (rest / rest.norm())[:, None]], dim=1)
    return (basis * keep[:, None]).float()  # the eigenvectors have rounding noise where a coordinate counts as 0


def collapsed_gradient(gradient: Tensor, common: Common) -> Tensor:
    """Return the gradient of a weight (out, in) or a bias (out,) without the common subspaces.

    It is (I - U U^T) G (I - V V^T) with U = ``common.outputs`` and V = ``common.inputs``: what the sum over tokens of
    (output gradient) x (activation) is if each factor has lost its common part.
    """
    without = gradient - common.outputs @ (common.outputs.T @ gradient)
    if gradient.dim() == 1:
        return without
    return without - (without @ common.inputs) @ common.inputs.T


class Collapse:
    """Takes the common subspaces out of the gradients of a model's linear layers; other gradients stay as they are.

    ``common``: by the name of the linear module.
    """

    def __init__(self, model: nn.Module, common: Mapping[str, Common]) -> None:
        self._of: dict[nn.Parameter, tuple[Common, bool]] = {}
        for name, spaces in common.items():
            module: Any = model.get_submodule(name)
            device = module.weight.device
            placed = Common(spaces.inputs.to(device), spaces.outputs.to(device))
            self._of[module.weight] = (placed, isinstance(module, Conv1D))
            if module.bias is not None:
                self._of[module.bias] = (placed, False)

    def __call__(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """The gradient of ``parameter`` after the collapse, in its own dtype."""
        if parameter not in self._of:
            return gradient
        common, transposed = self._of[parameter]
        wide = gradient.float()
        collapsed = collapsed_gradient(wide.T, common).T if transposed else collapsed_gradient(wide, common)
        return collapsed.to(gradient.dtype)


def collapsible(model: Any) -> list[str]:
    """Return the names of the linear layers whose weight is trained, without the output head."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight.requires_grad
    ]


def fit_common(
    model: Any,
    batches: Batches,
    *,
    activations: int,
    gradients: int,
    frozen: Mapping[str, tuple[int, Tensor]],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Common]:
    """Return the common subspaces of every :func:`collapsible` layer on ``batches``, by the layer's name.

    - ``activations``, ``gradients``: the principal directions on either side
    - ``frozen``: by the name of a weight, (axis, indices along it) of its frozen neurons. Coordinates that belong to
      frozen neurons alone have no part in the subspaces.
    - ``advance`` is called after each batch

    Vectors are those of all tokens that are not padding. The gradients are those of the summed cross-entropy (nats) of
    the labelled tokens. Weights, gradients and modes of the model are left unchanged. A side of n numbers takes 8 n^2
    bytes of the computer's memory. Raises :class:`UserError` if no layer can be collapsed.
    """
    names = collapsible(model)
    if not names:
        raise UserError("collapse: no linear layer is trained: set trainable to mlps, linear or all")
    device = next(model.parameters()).device
    mask = torch.empty(0)
    with _watched(model, names, lambda: mask) as moments, evaluating(model), torch.enable_grad():
        for batch in batches:
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")}
            mask = inputs["attention_mask"].flatten().bool()
            logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
            targets = inputs["labels"][:, 1:]
            cross_entropy(logits[:, :-1].transpose(1, 2).float(), targets, reduction="sum").backward()
            model.zero_grad(set_to_none=True)
            advance()
    found = {}
    for name in names:
        inputs_live, outputs_live = _live(model.get_submodule(name), frozen.get(f"{name}.weight"))
        ins, outs = moments[name]
        found[name] = Common(
            common_subspace(ins, activations, inputs_live), common_subspace(outs, gradients, outputs_live)
        )
    return found


def write_common(folder: Path, common: Mapping[str, Common]) -> None:
    """Write the common subspaces into a folder."""
    tensors = {f"{name}.{side}": getattr(one, side) for name, one in common.items() for side in ("inputs", "outputs")}
    write_tensors(folder / _FILE, tensors, {})


def read_common(folder: Path) -> dict[str, Common]:
    """Return what :func:`write_common` wrote."""
    tensors = read_tensors(folder / _FILE)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {name: Common(tensors[f"{name}.inputs"], tensors[f"{name}.outputs"]) for name in names}


def _live(module: Any, frozen: tuple[int, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    """Which coordinates of a layer's inputs and outputs may change, bool; None: all of them."""
    if frozen is None:
        return None, None
    axis, rows = frozen
    live = torch.ones(module.weight.shape[axis], dtype=torch.bool).index_fill(0, rows.cpu(), False)
    of_outputs = axis == (1 if isinstance(module, Conv1D) else 0)
    return (None, live) if of_outputs else (live, None)


@contextmanager
def _watched(
    model: nn.Module, names: Iterable[str], mask: Any
) -> Iterator[dict[str, tuple[TokenMoments, TokenMoments]]]:
    """Collect the moments of each layer's inputs and output gradients; ``mask`` gives the tokens that count."""
    moments: dict[str, tuple[TokenMoments, TokenMoments]] = {}
    handles = []

    def watch(name: str) -> None:
        module: Any = model.get_submodule(name)
        out, width = module.weight.shape
        if isinstance(module, Conv1D):
            out, width = width, out
        ins, outs = moments[name] = TokenMoments(width), TokenMoments(out)

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            ins.add(args[0].detach().reshape(-1, width)[mask()])
            counted = mask()
            output.register_hook(lambda gradient: outs.add(gradient.reshape(-1, out)[counted]))

        handles.append(module.register_forward_hook(hook))

    try:
        for name in names:
            watch(name)
        yield moments
    finally:
        for handle in handles:
            handle.remove()
