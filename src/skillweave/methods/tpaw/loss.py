"""The team loss of TPAW and related losses: pure functions of summed token log-probabilities.

All functions take the same four tensors of log-probabilities, in nats. y is the data's answer, y' one that a player
generated:

- ``policy_target``, ``policy_generated`` (B,): log pi(y|x) and log pi(y'|x) under the policy that is trained.
- ``player_target``, ``player_generated`` (P, B): the same under each of P frozen players.

Each returns the loss of every pair (B,) and a dict of detached statistics, each (P, B)::

    target_reward     P_j(x, y)  = lam * (log pi(y|x)  - log pi_j(y|x))
    generated_reward  P_j(x, y') = lam * (log pi(y'|x) - log pi_j(y'|x))
    alpha, beta       the response weight and the player weight, if the loss has them

Log-probabilities are summed over an answer's tokens, not averaged. SPIN does so; TPAW does not say [ours].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

LossStatistics = dict[str, Tensor]
"""Name -> detached values, each (P, B)."""


def team_loss(
    policy_target: Tensor,
    policy_generated: Tensor,
    player_target: Tensor,
    player_generated: Tensor,
    *,
    lam: float,
    eta: float,
    gamma: float,
    tolerance: float = 0.0,
) -> tuple[Tensor, LossStatistics]:
    """TPAW's loss [digest], l(t) = log(1 + e^-t)::

        alpha_j = eta where P_j(x, y) <= 0, else 1
        beta_j  = softmax over j of -gamma * (P_j(x, y) - P_j(x, y'))
        loss    = sum_j beta_j * l(alpha_j * P_j(x, y) - P_j(x, y'))

    - A target that is less likely than it was under a player gets a gradient ``eta`` times larger.
    - The players that prefer the target most are the hardest to beat, and weigh most.
    - Whether a gradient passes through the weights is not public, and makes no difference [ours]: alpha is a step
      function, and the policy's part of beta is common to all players and cancels in the softmax, so beta depends only
      on the pair and the players.
    - The loss is continuous at P_j = 0 (with ``tolerance`` 0); its slope changes there by the factor eta.
    - With one player and ``eta`` 1 this is :func:`spin_loss`.
    - ``tolerance`` (nats) [ours]: a P_j of up to lam * tolerance counts as 0. A round begins at P_j = 0 for the newest
      player, where alpha is eta; in bfloat16, policy and player differ there only by rounding.
    """
    target, generated = _rewards(policy_target, policy_generated, player_target, player_generated, lam)
    with torch.no_grad():
        alpha = torch.ones_like(target).masked_fill_(target <= lam * tolerance, eta)
        beta = torch.softmax(-gamma * (target - generated), dim=0)
    loss = (beta * _logistic(alpha * target - generated)).sum(dim=0)
    return loss, {**_detached(target, generated), "alpha": alpha, "beta": beta}


def spin_loss(
    policy_target: Tensor, policy_generated: Tensor, player_target: Tensor, player_generated: Tensor, *, lam: float
) -> tuple[Tensor, LossStatistics]:
    """SPIN's logistic loss, l(P(x, y) - P(x, y')) (arXiv 2401.01335, equation 4.7) [digest].

    The only player is the policy at the start of the round. Raises ``ValueError`` if P is not 1.
    """
    target, generated = _rewards(policy_target, policy_generated, player_target, player_generated, lam)
    _one_player(target)
    return _logistic(target - generated)[0], _detached(target, generated)


def dpo_loss(
    policy_target: Tensor, policy_generated: Tensor, player_target: Tensor, player_generated: Tensor, *, lam: float
) -> tuple[Tensor, LossStatistics]:
    """The loss of direct preference optimisation (arXiv 2305.18290, equation 7); ``lam`` is its beta.

    The formula is that of :func:`spin_loss`, but the meaning differs: y is the preferred answer, y' the rejected one,
    and the only player is the reference.
    """
    return spin_loss(policy_target, policy_generated, player_target, player_generated, lam=lam)


def tspin_loss(
    policy_target: Tensor,
    policy_generated: Tensor,
    player_target: Tensor,
    player_generated: Tensor,
    *,
    lam: float,
    policy_first: Tensor,
) -> tuple[Tensor, LossStatistics]:
    """A triplet loss without a reference, after T-SPIN (arXiv 2601.08198) [relative; written from its description]::

        loss = l(lam * (log pi(y|x) - log pi(y'|x))) + l(lam * (log pi(y'|x) - log pi(y0|x)))

    - ``policy_first`` (B,): the policy's log-probability of y0, the answer that the very first player generated. When
      y' has become similar to y, the second term still has a gradient.
    - In the first round y0 is y', and the second term is constant.
    - If y0 were the target itself, the second term would teach the model to forget it. The caller therefore passes y'
      in place of a faulty y0 [ours].
    - Both terms have the same ``lam`` [ours].
    - The players do not enter the loss, only the statistics.
    """
    target, generated = _rewards(policy_target, policy_generated, player_target, player_generated, lam)
    if policy_first.shape != policy_target.shape:
        raise ValueError(f"policy_first must be {tuple(policy_target.shape)}, not {tuple(policy_first.shape)}")
    now = _logistic(lam * (policy_target - policy_generated))
    history = _logistic(lam * (policy_generated - policy_first))
    return now + history, _detached(target, generated)


def _logistic(margin: Tensor) -> Tensor:
    return softplus(-margin)


def _rewards(
    policy_target: Tensor, policy_generated: Tensor, player_target: Tensor, player_generated: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """P_j of targets and of generations, both (P, B). Raises ``ValueError`` if shapes do not fit."""
    pairs = policy_target.shape
    if len(pairs) != 1 or policy_generated.shape != pairs:
        raise ValueError(f"policy log-probabilities must both be (B,), not {tuple(pairs)}, {policy_generated.shape}")
    both = player_target.shape, player_generated.shape
    if player_target.dim() != 2 or not len(player_target) or both[0][1:] != pairs or both[1] != both[0]:
        raise ValueError(
            f"player log-probabilities must both be (P, {pairs[0]}), P at least 1, not {tuple(player_target.shape)}, "
            f"{tuple(player_generated.shape)}"
        )
    return lam * (policy_target - player_target), lam * (policy_generated - player_generated)


def _one_player(target: Tensor) -> None:
    if len(target) != 1:
        raise ValueError(f"this loss has one player, not {len(target)}")


def _detached(target: Tensor, generated: Tensor) -> LossStatistics:
    return {"target_reward": target.detach(), "generated_reward": generated.detach()}
