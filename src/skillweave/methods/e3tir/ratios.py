"""How much a token of an expert's prefix counts in the policy gradient: pure functions of log-probabilities.

A token that the policy sampled has the ratio pi / pi_old. The expert wrote its prefix by other rules: the probability
of each token under these rules is unknown and is assumed to be 1. There are three ways to weigh such a token. Each
ratio is multiplied by the advantage; pi is the token's probability under the policy that is trained::

    kind         ratio                      d ratio / d log pi           source
    mixture      pi / (0.5 pi_old + 0.5)    ratio                        RL-PLUS (arXiv 2508.00222) [relative]
    shaped       pi / (pi + 0.1)            ratio * 0.1 / (pi + 0.1)     LUFFY (arXiv 2504.14945) [relative]
    on_policy    1                          1                            [ours]

* ``mixture``: the data is assumed to come half from the sampling policy and half from the expert. It hardly moves a
  token that the policy would not write.
* ``shaped`` pulls such a token up to five times harder, and hardly pulls a token that is already likely.
* ``on_policy`` treats the prefix as if the policy had written it: with an advantage A the gradient is A times that of
  supervised learning.

Inside GRPO's min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) the first two are below 1 where pi = pi_old. A positive A
is not affected by that. With a negative A the clip stops the gradient wherever ratio < 1 - eps: at eps = 0.2 this is
below pi = 2/3 for ``mixture`` and below pi = 0.4 for ``shaped``. So if the prefix is not detached, a negative advantage
pushes down likely tokens only. ``on_policy`` is never clipped.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["mixture", "shaped", "on_policy"]

SHAPE = 0.1
"""LUFFY's gamma [relative]: the probability at which the shaped ratio is one half."""


def log_prefix_ratio(logp: Tensor, old_logp: Tensor, *, kind: Kind) -> Tensor:
    """The logarithm of each token's ratio, in nats: the shape of ``logp``, float32 or wider.

    The result is a logarithm because TRL's loss applies the exponential itself.

    * ``logp``: log pi of each token in nats, any float dtype
    * ``old_logp``: log pi_old, of the same shape; ``shaped`` and ``on_policy`` do not read it

    Gradients flow into ``logp`` only. A token that the policy excludes (``logp`` is -inf) gets the ratio 0
    (``on_policy``: 1), and the ratio has no gradient there. Neither such a token nor an ``old_logp`` of -inf gives NaN.
    A NaN in the input stays NaN.

    Raises ``ValueError`` for shapes that differ and for an unknown ``kind``.
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
