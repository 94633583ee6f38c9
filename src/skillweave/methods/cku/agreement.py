"""The sign-agreement mask: the forget gradient is followed only where it does not work against what must stay.

MUDMAN's disruption masking [digest: "update only where the forget and retain gradients agree in sign"], without its
meta-learning and its normalised gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def agreeing(forget: Tensor, retain: Tensor) -> Tensor:
    """``forget`` where it has the sign of ``retain``, elsewhere 0: gradients of one parameter, of any one shape.

    A step along what is left lowers both losses, to first order. Where either is 0 nothing is left.
    """
    return torch.where(forget.sign() * retain.sign() > 0, forget, torch.zeros_like(forget))


class SignAgreement:
    """Gathers the two gradients of a batch over its micro-batches, and merges them for the optimiser.

    Holds one more gradient than training does without it.
    """

    def __init__(self) -> None:
        self._forget: dict[torch.nn.Parameter, Tensor] = {}
        self._retain: dict[torch.nn.Parameter, Tensor] = {}

    def take_forget(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take what the forget loss of a micro-batch left in ``.grad``."""
        _take(self._forget, parameters)

    def take_retain(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take what the retain loss of a micro-batch left in ``.grad``."""
        _take(self._retain, parameters)

    def merge(self, parameters: Sequence[torch.nn.Parameter], mean: Callable[[Tensor], Tensor]) -> float:
        """Leave in ``.grad`` the retain gradient and what agrees with it of the forget gradient; begin anew.

        ``mean`` is over processes. Returns the share of the forget gradient's numbers, where it is not 0, that agree.
        """
        agreed, all_of_them = 0, 0
        for parameter in parameters:
            forget, retain = (
                mean(kept.pop(parameter, torch.zeros_like(parameter))) for kept in (self._forget, self._retain)
            )
            left = agreeing(forget, retain)
            agreed += int(left.count_nonzero())
            all_of_them += int(forget.count_nonzero())
            parameter.grad = left + retain
        return agreed / max(1, all_of_them)


def _take(kept: dict[torch.nn.Parameter, Tensor], parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            kept[parameter] = kept[parameter] + parameter.grad if parameter in kept else parameter.grad
            parameter.grad = None
