"""Round a model's weights, as whoever serves it does: to the dtype that its base is stored in, or to few bits."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from skillweave.base import Checkpoint
from skillweave.pack.integers import quantise_rows


@torch.no_grad()
def round_linears(model: Any, bits: int, group: int) -> None:
    """Replace the weight of every linear layer but the output head by what 4 or 8 bits leave of it, in place.

    ``group`` neighbouring weights of a row share a scale (a whole row, where it does not divide evenly); codes are
    round-to-nearest, symmetric, as :func:`quantise_rows` has them. Embeddings, norms and biases stay, as is usual.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            weight = module.weight.T if isinstance(module, Conv1D) else module.weight  # a row for each output
            width = group if weight.shape[1] % group == 0 else weight.shape[1]
            codes, scale = quantise_rows(weight.reshape(-1, width).cpu(), bits)
            weight.copy_((codes.float() * scale.float()[:, None]).reshape(weight.shape).to(weight))


def is_rounded(base: Checkpoint) -> bool:
    """Whether weights trained in float32 lose digits in the dtypes that the base is stored in."""
    return any(base.dtype(name).itemsize < 4 for name in base.names() if base.dtype(name).is_floating_point)


@torch.no_grad()
def round_as_stored(model: Any, base: Checkpoint) -> None:
    """Round every parameter to the dtype that the base's files hold it in, in place; the parameter's own dtype stays.

    That is what a backbone keeps of a training: on bfloat16 weights a step of less than a 256th of a weight is lost.
    """
    for name, parameter in model.named_parameters():
        if name in base:
            parameter.copy_(parameter.to(base.dtype(name)))
