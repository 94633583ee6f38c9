"""Where E3-TIR leaves an expert's trace, and how often: pure functions of the policy's entropy on its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pick_anchors(entropy: Tensor, eligible: Tensor, k: int) -> list[int]:
    """The ``k`` eligible positions at which the policy is least sure, in ascending order [digest].

    ``entropy`` (T,), nats, any float dtype: the policy's own, at each token of the expert's trace; ``eligible`` (T,)
    bool: the tokens a branch may begin at. Of equal entropies the earlier is taken [ours]. Fewer than ``k`` where fewer
    are eligible, none for ``k`` 0. A position whose entropy is NaN is never chosen, eligible or not. Raises
    ``ValueError`` for shapes or dtypes that do not fit and for a ``k`` below 0.
    """
    if entropy.dim() != 1 or eligible.shape != entropy.shape or eligible.dtype != torch.bool:
        raise ValueError(
            f"entropy and eligible (bool) must both be (T,), not {tuple(entropy.shape)} and "
            f"{eligible.dtype} {tuple(eligible.shape)}"
        )
    _not_negative("k", k)
    candidates = (eligible & ~entropy.isnan()).nonzero()[:, 0]
    # Stable, so that ties stay in the trace's order; topk promises none.
    order = entropy[candidates].sort(descending=True, stable=True).indices
    return sorted(candidates[order[:k]].tolist())


def split_branches(m: int, anchors: Sequence[int]) -> list[int]:
    """How many of ``m`` branches begin at each of ``anchors``: as many numbers as anchors, which add up to ``m``.

    As even as it goes; what is left over goes to the first ones, one each [ours]: with ``anchors`` in ascending order
    to the earliest, where most of the trace is still to be written by the policy. Without anchors there is nowhere to
    branch: the list is empty. Raises ``ValueError`` for an ``m`` below 0.
    """
    _not_negative("m", m)
    if not anchors:
        return []
    each, left = divmod(m, len(anchors))
    return [each + (place < left) for place in range(len(anchors))]


def _not_negative(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
