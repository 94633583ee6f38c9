"""Round a model's weights as a server does: to the dtype of the base's files, or to 4 or 8 bits."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from skillweave.base import Checkpoint
from skillweave.pack.integers import quantise_rows


@torch.no_grad()
def round_linears(model: Any, bits: int, group: int) -> None:
    """Quantise the weight of every linear layer except the output head to 4 or 8 bits and back, in place.

    ``group`` neighbouring weights of a row share a scale; if ``group`` does not divide the row evenly, the whole row
    does. The codes are round-to-nearest and symmetric: they are those of :func:`quantise_rows`, which also writes the
    integers of packs. Embeddings, norms and biases are not quantised, as is usual.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            weight = module.weight.T if isinstance(module, Conv1D) else module.weight  # one row per output
            width = group if weight.shape[1] % group == 0 else weight.shape[1]
            codes, scale = quantise_rows(weight.reshape(-1, width).cpu(), bits)
            weight.copy_((codes.float() * scale.float()[:, None]).reshape(weight.shape).to(weight))


def is_rounded(base: Checkpoint) -> bool:
    """Whether weights trained in float32 lose digits in the dtypes of the base's files."""
    return any(base.dtype(name).itemsize < 4 for name in base.names() if base.dtype(name).is_floating_point)


@torch.no_grad()
def round_as_stored(model: Any, base: Checkpoint) -> None:
    """Round every parameter to the dtype it has in the base's files, in place; the parameter keeps its own dtype.

    This is what a served backbone keeps of a training: in bfloat16 a change of less than 1/256 of a weight is lost.
    """
    for name, parameter in model.named_parameters():
        if name in base:
            parameter.copy_(parameter.to(base.dtype(name)))
