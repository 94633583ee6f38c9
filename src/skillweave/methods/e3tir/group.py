"""What a conversation is worth, from its end to its gradient: parts, reward, join, advantage, detached prefix.

A group holds the conversations on one prompt: those that the policy started itself (the self pool), then those that
continue an expert's trace (the expert pool, also called branches). Its life, in the order of this file:

1. :func:`reward_parts`: the verifier's score and the format become the parts of a reward; their sum is the reward.
2. :func:`join_experts`: the expert pool joins the group, or it does not count at all.
3. :func:`hybrid_advantages`: each conversation is compared with the group, a branch also with the other branches.
4. :func:`detach_prefix`: tokens of an expert's prefix get no gradient if the advantage is negative.

A reward is finite, or NaN if nothing could score the conversation. An unscorable conversation counts nowhere: it is in
no maximum, mean or deviation, and its advantage is 0, as in TRL's GRPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skillweave.methods.e3tir.config import E3tirConfig, RewardSettings
from skillweave.tasks import Entry
from skillweave.tools.call import EXPERT, POLICY, TOOL
from skillweave.tools.conversation import Episode

EPS = 1e-4
"""The number that is added to the standard deviation, as in TRL."""


# -- 1. the reward ----------------------------------------------------------------------------------------------------


def reward_parts(episode: Episode, score: float, settings: RewardSettings) -> dict[str, float]:
    """The parts of a conversation's reward: ``answer``, ``format`` and ``tools``. The reward is their sum.

    ``score`` is the verifier's, in [0, 1]; it is 0 if there is no answer.

    A bad format replaces the value of the answer, as in Tool-Star [relative]. If two things are wrong with the format,
    only the worse one counts. ``tools`` counts the names of the calls that gave a result; the calls in an expert's
    prefix are assumed to have given one.
    """
    penalties = [0.0]
    if episode.answer is None:
        penalties.append(settings.no_answer)
    if any(outcome.fault in ("malformed", "unknown tool") for outcome in episode.outcomes):
        penalties.append(settings.malformed)
    worst = min(penalties)
    if worst < 0:
        return {"answer": 0.0, "format": worst, "tools": 0.0}
    several = score == 1 and len(set(episode.names)) > 1
    return {"answer": settings.right * score, "format": 0.0, "tools": settings.several_tools if several else 0.0}


@dataclass
class Member:
    """One conversation of a group.

    * ``prefix``: how many of its tokens come from an expert's trace (with the results of the expert's calls)
    * ``branch``: whether it is in the expert pool
    * ``score``: the verifier's score in [0, 1]
    * ``parts``: the parts of the reward (:func:`reward_parts`)
    * ``joined``: whether it counts in the group and in the loss
    * ``silent``: positions in the prefix that get no gradient, whatever the advantage is
    * ``advantage``: one number for all its tokens
    """

    episode: Episode
    prefix: int
    branch: bool
    score: float
    parts: dict[str, float]
    silent: Sequence[int] = ()
    joined: bool = True
    advantage: float = 0.0

    @property
    def reward(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def loss_mask(self) -> list[int]:
        """(T,) 1 for each token that the policy or the expert wrote; all 0 if the conversation has not joined."""
        return [int(self.joined and writer != TOOL) for writer in self.episode.writers]

    @property
    def prefix_mask(self) -> list[bool]:
        """(T,) true for each token that the expert wrote."""
        return [at < self.prefix and writer == EXPERT for at, writer in enumerate(self.episode.writers)]

    @property
    def sampled(self) -> int:
        """The number of tokens that the policy wrote for this conversation alone."""
        return self.episode.writers[self.prefix :].count(POLICY)


# -- 2. the group -----------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """All conversations on one prompt: n that the policy started, then m from the expert (none without a trace)."""

    entry: Entry
    members: list[Member]

    def pool(self, branch: bool) -> list[Member]:
        """The expert pool if ``branch``, else the self pool."""
        return [member for member in self.members if member.branch == branch]

    def spread(self) -> float:
        """The difference between the highest and the lowest reward."""
        rewards = [member.reward for member in self.members]
        return max(rewards) - min(rewards)

    def set_advantages(self, config: E3tirConfig) -> None:
        """Decide whether the expert pool joins, and set the advantage of every member that counts."""
        settings = config.expert
        experts = self.pool(True)
        if settings.mixing == "sum":
            # The expert's tokens have their own loss, so the policy's conversations are compared among themselves.
            compared = self.pool(False)
            for member in experts:
                member.joined, member.advantage = True, settings.weight
        else:
            joined = not settings.filter or join_experts(_rewards(self.pool(False)), _rewards(experts))
            for member in experts:
                member.joined = joined
            compared = [member for member in self.members if member.joined]
        is_branch = torch.tensor([member.branch for member in compared], dtype=torch.bool)
        advantages = hybrid_advantages(_rewards(compared), is_branch, lam=settings.lam, eps=EPS)
        for member, advantage in zip(compared, advantages.tolist(), strict=True):
            member.advantage = advantage


def join_experts(self_rewards: Tensor, branch_rewards: Tensor) -> bool:
    """Whether the branches enter the group: only if the best of them is better than the best self rollout [digest].

    Equal is not better. ``self_rewards`` is (N,), ``branch_rewards`` (M,). The result is False without a scorable
    branch. Without a scorable self rollout any scorable branch is enough [ours].
    """
    own, branches = (rewards[~rewards.isnan()] for rewards in (self_rewards, branch_rewards))
    if not len(branches):
        return False
    return not len(own) or bool(branches.max() > own.max())


# -- 3. the advantage -------------------------------------------------------------------------------------------------


def hybrid_advantages(rewards: Tensor, is_branch: Tensor, *, lam: float, eps: float) -> Tensor:
    """The advantage of each conversation of a group: (G,), float32 or wider.

    The two levels are the paper's [digest]; adding them is our choice [ours]::

        A_global = (r - mean) / (std + eps)     over the whole group
        A_tree   = the same over the branches   (the subtree of one expert trace)
        A        = lam * A_global + (1 - lam) * A_tree for a branch, A_global for a self rollout

    * ``rewards``: (G,); finite, or NaN for a conversation that could not be scored
    * ``is_branch``: (G,) bool
    * ``lam``: within [0, 1]
    * ``eps``: above 0

    If fewer than two branches are scorable, a branch has nothing in its tree to be compared with: it gets A_global, not
    ``lam`` times A_global [ours].

    The deviation is the unbiased one (divisor G - 1). So without branches, or with ``lam`` 1, this is the advantage of
    TRL's GRPO, whose eps is 1e-4. A group with fewer than two scorable conversations gives 0. A level of equal rewards
    gives exactly 0: a rounding error would be divided by ``eps`` alone, and its sign would decide what
    :func:`detach_prefix` cuts off.

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
    scorable_branches = int((is_branch & ~rewards.isnan()).sum())
    if scorable_branches < 2:
        return over_group
    over_tree = _standardised(rewards, is_branch, eps)
    return torch.where(is_branch, lam * over_group + (1 - lam) * over_tree, over_group)


def _standardised(rewards: Tensor, among: Tensor, eps: float) -> Tensor:
    """(r - mean)/(std + eps) over the scorable rewards selected by ``among``; 0 for all others."""
    counted = among & ~rewards.isnan()
    result = torch.zeros_like(rewards)
    pool = rewards[counted]
    if len(pool) > 1:
        # After subtracting the first reward, equal rewards are exact zeros; their mean may have a rounding error.
        pool = pool - pool[0]
        result[counted] = (pool - pool.mean()) / (pool.std() + eps)
    return result


def _rewards(members: Sequence[Member]) -> Tensor:
    """The rewards of the members, (N,) float32."""
    return torch.tensor([member.reward for member in members], dtype=torch.float32)


# -- 4. the gradient --------------------------------------------------------------------------------------------------


def detach_prefix(prefix_mask: Tensor, advantages: Tensor) -> Tensor:
    """Advantage-aware gradient detaching [digest]: (G, T) factors of the per-token loss, in the advantages' dtype.

    A factor is 0 exactly where a token lies in a shared expert prefix and the advantage of its conversation is below 0;
    all others are 1. A branch that goes wrong after the anchor must not unlearn the expert's steps before it, because
    good branches share them; the branch's own tokens still learn.

    * ``prefix_mask``: (G, T) bool, true on the expert's tokens before the anchor
    * ``advantages``: (G,), the ones that the loss uses

    Raises ``ValueError`` for shapes or dtypes that do not fit.
    """
    if prefix_mask.dim() != 2 or advantages.shape != prefix_mask.shape[:1] or prefix_mask.dtype != torch.bool:
        raise ValueError(
            f"prefix_mask must be bool (G, T) and advantages (G,), not {prefix_mask.dtype} "
            f"{tuple(prefix_mask.shape)} and {tuple(advantages.shape)}"
        )
    return (~(prefix_mask & (advantages < 0)[:, None])).to(advantages.dtype)
