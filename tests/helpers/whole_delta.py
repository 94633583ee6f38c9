"""A delta that changes every tensor of a micro base, with singular values that fall as fast as a test wants."""

from __future__ import annotations

from collections.abc import Callable

import torch

from skillweave.base import Base
from skillweave.delta import Delta

CALIBRATION = [(f"what is {i} and {i}", f"it is {2 * i}, of course") for i in range(8)]
"""Prompts with answers."""


def whole_delta(base: Base, fall: float, largest: Callable[[str], float] = lambda name: 0.01) -> Delta:
    """A delta whose matrices have the singular values ``largest(name) * fall ** i``; the rest is small noise."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in base.model.state_dict().items():
        if name == "lm_head.weight":
            continue
        change = torch.randn(tensor.shape, generator=generator) * 1e-3
        if tensor.dim() == 2:
            u, _, v = torch.linalg.svd(change, full_matrices=False)
            change = u * fall ** torch.arange(u.shape[1]) @ v * largest(name)
        tensors[name] = change
    return Delta(tensors, base_fingerprint=base.fingerprint)
