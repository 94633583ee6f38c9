"""How much a token of an expert's prefix counts in the policy gradient: pure functions of log-probabilities.

A token the policy sampled has the ratio pi / pi_old. The expert wrote its prefix by other rules: how likely each token
was under them is unknown and taken as 1. Three ways to weigh it, all multiplied by the advantage, pi being the
token's probability under the policy that is trained::

    kind         ratio                      d ratio / d log pi           source
    mixture      pi / (0.5 pi_old + 0.5)    ratio                        RL-PLUS (arXiv 2508.00222) [relative]
    shaped       pi / (pi + 0.1)            ratio * 0.1 / (pi + 0.1)     LUFFY (arXiv 2504.14945) [relative]
    on_policy    1                          1                            [ours]

``mixture``: the data's policy is half the sampling policy, half the expert; it hardly moves a token the policy would
not write. ``shaped`` pulls such a token up to five times harder and lets go of likely ones. ``on_policy`` treats the
prefix as if the policy had written it: with an advantage A it is A times the gradient of supervised learning.

Inside GRPO's min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) the first two are below 1 where pi = pi_old. That leaves a
positive A alone. With a negative A the clip stops the gradient wherever ratio < 1 - eps: at eps = 0.2 below pi = 2/3
for ``mixture`` and below pi = 0.4 for ``shaped``. What harm is left when the prefix is not detached thus falls on
likely tokens alone; ``on_policy`` is never clipped.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["mixture", "shaped", "on_policy"]

SHAPE = 0.1
"""LUFFY's gamma [relative]: the probability at which the shaped ratio is one half."""


def prefix_ratio(logp: Tensor, old_logp: Tensor, *, kind: Kind) -> Tensor:
    """The ratio of each token, exp of :func:`log_prefix_ratio`: the shape of ``logp``, at least 0."""
    return log_prefix_ratio(logp, old_logp, kind=kind).exp()


def log_prefix_ratio(logp: Tensor, old_logp: Tensor, *, kind: Kind) -> Tensor:
    """The logarithm of each token's ratio: the shape of ``logp``, nats, float32 at the least.

    In logs because TRL's loss takes the exponential itself. ``logp`` and ``old_logp``, of one shape, any float dtype,
    nats: log pi and log pi_old of each token. Gradients flow into ``logp`` alone. ``shaped`` and ``on_policy`` do not
    read ``old_logp``.

    A token the policy excludes, ``logp`` -inf, gets ratio 0 (``on_policy``: 1) and the ratio has no gradient there; it
    gives no NaN, and neither does an ``old_logp`` of -inf. A NaN comes out as NaN. Raises ``ValueError`` for shapes
    that differ and for an unknown ``kind``.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    if logp.shape != old_logp.shape:
        raise ValueError(f"logp and old_logp must have one shape, not {tuple(logp.shape)} and {tuple(old_logp.shape)}")
    logp, old_logp = _wide(logp), _wide(old_logp).detach()
    if kind == "mixture":
        return logp - (torch.logaddexp(old_logp, torch.zeros_like(old_logp)) - math.log(2))
    if kind == "shaped":
        return logp - torch.logaddexp(logp, torch.full_like(logp, math.log(SHAPE)))
    # -inf minus itself would be NaN.
    return torch.where(logp.isneginf(), torch.zeros_like(logp), logp - logp.detach())


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
