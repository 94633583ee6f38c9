"""Compute theta - theta_base and the sum back, in float32 and in blocks: memory is about that of the result."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_BLOCK = 2**22  # elements; 16 MB in float32


def difference(base: torch.Tensor, tuned: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tuned - base`` of two tensors of one shape, computed in float32, rounded once to ``dtype``."""
    result = torch.empty(base.shape, dtype=dtype)
    for out, old, new in _blocks(result, base, tuned):
        out.copy_(new.float() - old.float())
    return result


def applied(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """``base + delta`` of two tensors of one shape, computed in float32, rounded once to the dtype of ``base``.

    The result is on the device of ``base``. How exact is it? Let ``delta = difference(base, tuned, base.dtype)``, and
    let u be the distance of two neighbouring numbers of that dtype at max(abs(base), abs(tuned)). Then the result is
    within u of ``tuned`` (2u where the sign changed). Where the difference has no more digits than the dtype holds,
    which is the case nearly everywhere after fine-tuning, the result is ``tuned`` itself. [ours]
    """
    result = torch.empty_like(base, memory_format=torch.contiguous_format)
    for out, old, change in _blocks(result, base, delta):
        out.copy_(old.float() + change.to(old.device).float())
    return result


def changed(base: torch.Tensor, tuned: torch.Tensor) -> bool:
    """Whether any value differs (0 and -0 are equal), whatever the two dtypes."""
    return any(bool((old.float() != new.float()).any()) for old, new in _blocks(base, tuned))


def finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return all(bool(block.isfinite().all()) for (block,) in _blocks(tensor))


def _blocks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Equal slices of equally shaped tensors, flattened; views where a tensor is contiguous."""
    yield from zip(*(tensor.reshape(-1).split(_BLOCK) for tensor in tensors), strict=True)
