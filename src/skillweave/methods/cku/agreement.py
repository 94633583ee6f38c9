"""The sign-agreement mask: the forget gradient is followed only where it does not conflict with the retain gradient.

This is MUDMAN's disruption masking [digest: "update only where the forget and retain gradients agree in sign"], without
its meta-learning and its normalised gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def agreeing(forget: Tensor, retain: Tensor) -> Tensor:
    """Return ``forget`` where it has the same sign as ``retain``, and 0 elsewhere (also where either is 0).

    Both are gradients of one parameter, of any shape. A step along the result lowers both losses, to first order.
    """
    return torch.where(forget.sign() * retain.sign() > 0, forget, torch.zeros_like(forget))


class SignAgreement:
    """Collects the two gradients of a batch over its micro-batches, and merges them for the optimiser.

    It needs the memory of one more gradient.
    """

    def __init__(self) -> None:
        self._forget: dict[torch.nn.Parameter, Tensor] = {}
        self._retain: dict[torch.nn.Parameter, Tensor] = {}

    def take_forget(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add what is in ``.grad`` to the forget gradient, and clear ``.grad``."""
        _move_gradients(self._forget, parameters)

    def take_retain(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add what is in ``.grad`` to the retain gradient, and clear ``.grad``."""
        _move_gradients(self._retain, parameters)

    def merge(self, parameters: Sequence[torch.nn.Parameter], mean: Callable[[Tensor], Tensor]) -> float:
        """Set ``.grad`` to the retain gradient plus the agreeing part of the forget gradient, and start a new batch.

        ``mean`` averages a tensor over the processes. Returns the share of the nonzero entries of the forget gradient
        that agree.
        """
        agreed, nonzero = 0, 0
        for parameter in parameters:
            forget, retain = (
                mean(sums.pop(parameter, torch.zeros_like(parameter))) for sums in (self._forget, self._retain)
            )
            followed = agreeing(forget, retain)
            agreed += int(followed.count_nonzero())
            nonzero += int(forget.count_nonzero())
            parameter.grad = followed + retain
        return agreed / max(1, nonzero)


def _move_gradients(sums: dict[torch.nn.Parameter, Tensor], parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            sums[parameter] = sums[parameter] + parameter.grad if parameter in sums else parameter.grad
            parameter.grad = None
