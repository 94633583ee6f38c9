"""Round a model's weights to few bits, as whoever serves it small would."""

from __future__ import annotations

from typing import Any

import torch

from skillweave.pack.integers import quantise_rows


@torch.no_grad()
def round_linears(model: Any, bits: int, group: int) -> None:
    """Replace the weight of every linear layer but the output head by what 4 or 8 bits leave of it, in place.

    ``group`` neighbouring weights of a row share a scale (a whole row, where it does not divide evenly); codes are
    round-to-nearest, symmetric, as :func:`quantise_rows` has them. Embeddings, norms and biases stay, as is usual.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            weight = module.weight
            width = group if weight.shape[1] % group == 0 else weight.shape[1]
            codes, scale = quantise_rows(weight.reshape(-1, width).cpu(), bits)
            module.weight.copy_((codes.float() * scale.float()[:, None]).reshape(weight.shape).to(weight))
