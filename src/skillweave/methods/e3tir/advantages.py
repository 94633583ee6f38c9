"""What a trajectory of E3-TIR is worth, and what of it may learn: pure functions of one prompt's rewards.

A prompt's group is its G trajectories: those the policy rolled out by itself, then those that branch from an expert's
trace. A reward is finite, or NaN where nothing could score the trajectory. An unscorable one counts nowhere: not in a
best, not in a mean or a deviation, and its advantage is 0, as in TRL's GRPO.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join_experts(self_rewards: Tensor, branch_rewards: Tensor) -> bool:
    """Whether the branches enter the group: only if the best of them beats the best self rollout, strictly [digest].

    ``self_rewards`` (N,), ``branch_rewards`` (M,). Without a scorable branch: False. Without a scorable self rollout
    any scorable branch is enough [ours].
    """
    own, branches = (rewards[~rewards.isnan()] for rewards in (self_rewards, branch_rewards))
    if not len(branches):
        return False
    return not len(own) or bool(branches.max() > own.max())


def hybrid_advantages(rewards: Tensor, is_branch: Tensor, *, lam: float, eps: float) -> Tensor:
    """The advantage of each trajectory of one prompt's group: (G,), float32 at the least.

    The two levels are the paper's [digest], their sum is ours [ours]::

        A_global = (r - mean) / (std + eps)     over the whole group
        A_tree   = the same over the branches   one expert's subtree
        A        = lam * A_global + (1 - lam) * A_tree for a branch, A_global for a self rollout

    A branch that is alone in its tree, fewer than two being scorable, has nothing there to be compared with: it gets
    A_global as well, not ``lam`` times it [ours].

    ``rewards`` (G,), ``is_branch`` (G,) bool, ``lam`` within [0, 1], ``eps`` above 0. The deviation is the unbiased one
    (divisor G - 1), so that without branches, or with ``lam`` 1, this is the advantage of TRL's GRPO, whose eps is
    1e-4. A group with fewer than two scorable trajectories gives 0, and so does a level of equal rewards, exactly: a
    rounding error would be divided by ``eps`` alone, and its sign decide what :func:`detach_prefix` cuts off.
    Raises ``ValueError`` for shapes, dtypes or settings that do not fit and for an infinite reward.
    """
    if rewards.dim() != 1 or is_branch.shape != rewards.shape or is_branch.dtype != torch.bool:
        raise ValueError(
            f"rewards and is_branch (bool) must both be (G,), not {tuple(rewards.shape)} and "
            f"{is_branch.dtype} {tuple(is_branch.shape)}"
        )
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie within [0, 1], not {lam}")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, not {eps}")
    if rewards.isinf().any():
        raise ValueError("a reward must be finite, or NaN where nothing could score; one is infinite")
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    over_group = _standardised(rewards, torch.ones_like(is_branch), eps)
    if int((is_branch & ~rewards.isnan()).sum()) < 2:
        return over_group
    over_tree = _standardised(rewards, is_branch, eps)
    return torch.where(is_branch, lam * over_group + (1 - lam) * over_tree, over_group)


def detach_prefix(prefix_mask: Tensor, advantages: Tensor) -> Tensor:
    """Advantage-aware gradient detaching [digest]: (G, T) factors of the per-token loss, in the advantages' dtype.

    0 exactly where a token lies in a shared expert prefix and its trajectory's advantage is below 0, else 1: a branch
    that went wrong after the anchor must not unlearn the expert's steps before it, which good branches share; its own
    tokens learn as ever. ``prefix_mask`` (G, T) bool, true on the tokens before the anchor; ``advantages`` (G,), the
    ones the loss uses. Raises ``ValueError`` for shapes or dtypes that do not fit.
    """
    if prefix_mask.dim() != 2 or advantages.shape != prefix_mask.shape[:1] or prefix_mask.dtype != torch.bool:
        raise ValueError(
            f"prefix_mask must be bool (G, T) and advantages (G,), not {prefix_mask.dtype} "
            f"{tuple(prefix_mask.shape)} and {tuple(advantages.shape)}"
        )
    return (~(prefix_mask & (advantages < 0)[:, None])).to(advantages.dtype)


def _standardised(rewards: Tensor, among: Tensor, eps: float) -> Tensor:
    """(r - mean)/(std + eps) over the scorable rewards ``among`` the group, 0 for all others."""
    counted = among & ~rewards.isnan()
    result = torch.zeros_like(rewards)
    pool = rewards[counted]
    if len(pool) > 1:
        # Taken from the first, equal rewards are exact zeros; their mean itself may be off by a rounding.
        pool = pool - pool[0]
        result[counted] = (pool - pool.mean()) / (pool.std() + eps)
    return result
