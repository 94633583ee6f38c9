"""Adam for the factors of a pack, with one second moment for all numbers of a direction.

A direction is a column of A or a row of B. Adam divides the gradient of each number by its own root mean square, so
that numbers whose gradient is only noise move as far as those that matter. Factors are rounded to few codes, where each
change of a code costs something. With the root mean square of the whole direction (as Adam-mini has it for blocks of
weights), numbers with small gradients keep their codes [ours].
"""

from __future__ import annotations

import torch

_DECAYS = 0.9, 0.99
_LARGEST = 10.0
"""No number moves by more than this times the rate: one may have all of its direction's gradient."""
_TINY = 1e-20
"""A direction without a gradient stays where it is."""


def moments(key: str, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first moment and the second moment of a factor before the first step."""
    return torch.zeros_like(factor), torch.zeros_like(_of_directions(key, factor))


@torch.no_grad()
def adam_step(
    key: str,
    factor: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    step: int,
    rate: float,
) -> None:
    """Change a factor and its moments in place, in the ``step``-th step of the training, counted from 1.

    ``key`` ends with ``.A`` for a factor (out, rank) and with ``.B`` for one (rank, in). Any other factor is one
    direction. A number whose gradient is the root mean square of its direction moves by ``rate``.
    """
    decay, slow = _DECAYS
    first.lerp_(gradient, 1 - decay)
    second.lerp_(_of_directions(key, gradient.square()), 1 - slow)
    size = (second / (1 - slow**step)).sqrt()
    factor.sub_((first / (1 - decay**step) / (size + _TINY)).clamp(-_LARGEST, _LARGEST), alpha=rate)


def _of_directions(key: str, squares: torch.Tensor) -> torch.Tensor:
    """Return the mean of each direction, with the axes of the factor."""
    if key.endswith(".A"):
        return squares.mean(0, keepdim=True)
    return squares.mean(1, keepdim=True) if key.endswith(".B") else squares.mean()[None]
