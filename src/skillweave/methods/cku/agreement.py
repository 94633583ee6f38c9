"""The forget gradient and the retain gradient of a batch, and what of the forget gradient is followed.

The sign-agreement mask follows it only where it does not conflict with the retain gradient. This is MUDMAN's disruption
masking [digest: "update only where the forget and retain gradients agree in sign"], without its meta-learning and its
normalised gradients. The collapse of common representations comes before it (:mod:`skillweave.methods.cku.collapse`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Change = Callable[[torch.nn.Parameter, Tensor], Tensor]
"""(parameter, its forget gradient) -> the gradient to follow."""


def agreeing(forget: Tensor, retain: Tensor) -> Tensor:
    """Return ``forget`` where it has the same sign as ``retain``, and 0 elsewhere (also where either is 0).

    Both are gradients of one parameter, of any shape. A step along the result lowers both losses, to first order.
    """
    return torch.where(forget.sign() * retain.sign() > 0, forget, torch.zeros_like(forget))


class TwoGradients:
    """Collects the two gradients of a batch over its micro-batches, and merges them for the optimiser.

    It needs the memory of one more gradient.

    - ``agree``: whether only the agreeing part of the forget gradient is followed
    - ``collapse``: what is done to the forget gradient before that, or None
    """

    def __init__(self, *, agree: bool, collapse: Change | None) -> None:
        self._agree, self._collapse = agree, collapse
        self._forget: dict[torch.nn.Parameter, Tensor] = {}
        self._retain: dict[torch.nn.Parameter, Tensor] = {}

    def take_forget(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add what is in ``.grad`` to the forget gradient, and clear ``.grad``."""
        _move_gradients(self._forget, parameters)

    def take_retain(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add what is in ``.grad`` to the retain gradient, and clear ``.grad``."""
        _move_gradients(self._retain, parameters)

    def merge(self, parameters: Sequence[torch.nn.Parameter], mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Set ``.grad`` to the retain gradient plus what is followed of the forget gradient, and start a new batch.

        ``mean`` averages a tensor over the processes. Returns what is logged of the step:

        - ``agree``: the share of the nonzero entries of the forget gradient that agree, if only these are followed
        - ``specific``: the length of the forget gradient after the collapse, relative to its length before it
        """
        agreed = nonzero = 0
        before = after = 0.0
        for parameter in parameters:
            forget, retain = (
                mean(sums.pop(parameter, torch.zeros_like(parameter))) for sums in (self._forget, self._retain)
            )
            if self._collapse is not None:
                before += float(forget.double().square().sum())
                forget = self._collapse(parameter, forget)
                after += float(forget.double().square().sum())
            followed = agreeing(forget, retain) if self._agree else forget
            agreed += int(followed.count_nonzero())
            nonzero += int(forget.count_nonzero())
            parameter.grad = followed + retain
        agreement = {"agree": agreed / max(1, nonzero)} if self._agree else {}
        specific = {"specific": math.sqrt(after / before) if before else 0.0} if self._collapse is not None else {}
        return agreement | specific


def _move_gradients(sums: dict[torch.nn.Parameter, Tensor], parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            sums[parameter] = sums[parameter] + parameter.grad if parameter in sums else parameter.grad
            parameter.grad = None
