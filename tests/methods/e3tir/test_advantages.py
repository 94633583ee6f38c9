"""Advantages against slow loops, TRL's formula and closed forms; the detached prefix by its gradients."""

from __future__ import annotations

import math

import pytest
import torch

from skillweave.methods.e3tir.group import detach_prefix, hybrid_advantages, join_experts

NAN = math.nan
LAM, EPS, CLIP = 0.5, 1e-4, 0.2


def slow_standardised(rewards: list[float], eps: float) -> list[float]:
    scored = [reward for reward in rewards if not math.isnan(reward)]
    if len(scored) < 2:
        return [0.0] * len(rewards)
    mean = sum(scored) / len(scored)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in scored) / (len(scored) - 1))
    return [0.0 if math.isnan(reward) else (reward - mean) / (std + eps) for reward in rewards]


def slow_advantages(rewards: list[float], is_branch: list[bool], lam: float, eps: float) -> list[float]:
    over_group = slow_standardised(rewards, eps)
    branches = [r for r, branch in zip(rewards, is_branch, strict=True) if branch]
    if sum(not math.isnan(reward) for reward in branches) < 2:
        return over_group
    tree = iter(slow_standardised(branches, eps))
    return [
        lam * own + (1 - lam) * next(tree) if branch else own for own, branch in zip(over_group, is_branch, strict=True)
    ]


def trl_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """The lines of TRL's GRPOTrainer for one group, scale_rewards="group"."""
    from trl.trainer.utils import nanstd

    grouped = rewards.view(1, -1)
    std = nanstd(grouped, dim=1) if len(rewards) > 1 else torch.zeros(1)
    return torch.nan_to_num((rewards - torch.nanmean(grouped, dim=1)) / (std + 1e-4), nan=0.0)


def drawn(seed: int, own: int, branches: int, unscorable: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    rewards = torch.randn(own + branches, dtype=torch.float64, generator=source)
    rewards[torch.rand(own + branches, generator=source) < unscorable] = NAN
    is_branch = torch.arange(own + branches) >= own
    # Not always self rollouts first.
    order = torch.randperm(own + branches, generator=source)
    return rewards[order], is_branch[order]


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("own", "branches"), [(8, 8), (1, 1), (4, 1), (1, 3), (0, 5), (5, 0), (3, 2)])
def test_advantages_against_a_slow_loop(own, branches, lam):
    for seed in range(6):
        rewards, is_branch = drawn(seed, own, branches, unscorable=0.3 * (seed % 2))
        ours = hybrid_advantages(rewards, is_branch, lam=lam, eps=EPS)
        assert ours.tolist() == pytest.approx(slow_advantages(rewards.tolist(), is_branch.tolist(), lam, EPS))


@pytest.mark.parametrize(
    "rewards",
    [
        [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.1, -1.0],
        [0.25, NAN, 1.0, 0.0, NAN, 0.5, 0.5, 1.0],
        [NAN, 1.0, NAN, NAN],
        [NAN, NAN, NAN],
        [1.0, 0.0],
        [0.5, 0.5, 0.5, 0.5],
        [0.7],
        [NAN],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_branches_the_advantages_are_trls(rewards, dtype):
    rewards = torch.tensor(rewards, dtype=dtype)
    ours = hybrid_advantages(rewards, torch.zeros(len(rewards), dtype=torch.bool), lam=LAM, eps=1e-4)
    torch.testing.assert_close(ours, trl_advantages(rewards).to(dtype))


def test_with_lam_one_the_mixed_group_is_trls_group():
    rewards, is_branch = drawn(0, 8, 8, unscorable=0.2)
    torch.testing.assert_close(hybrid_advantages(rewards, is_branch, lam=1.0, eps=1e-4), trl_advantages(rewards))


def test_a_group_counted_by_hand():
    """Self 0, 0; branches 1, 0, 1, 1: means 1/2 and 3/4, variances 0.3 and 1/4."""
    rewards = torch.tensor([0.0, 0, 1, 0, 1, 1], dtype=torch.float64)
    ours = hybrid_advantages(rewards, torch.arange(6) >= 2, lam=0.25, eps=1e-9)
    good, bad = 0.25 * 0.5 / math.sqrt(0.3) + 0.75 * 0.25 / 0.5, -0.25 * 0.5 / math.sqrt(0.3) - 0.75 * 0.75 / 0.5
    own = -0.5 / math.sqrt(0.3)
    assert ours.tolist() == pytest.approx([own, own, good, bad, good, good])


def test_a_branch_that_beats_the_group_but_not_its_tree_can_come_out_below_zero():
    rewards, is_branch = torch.tensor([0.0] * 8 + [0.6, 1.0, 1.0]), torch.arange(11) >= 8
    assert hybrid_advantages(rewards, is_branch, lam=1.0, eps=EPS)[8] > 0
    assert hybrid_advantages(rewards, is_branch, lam=0.2, eps=EPS)[8] < 0


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1])
def test_equal_rewards_give_exactly_zero_though_their_mean_rounds(value):
    for size in (2, 3, 7, 16):
        rewards = torch.full((size,), value)
        assert hybrid_advantages(rewards, torch.arange(size) >= 1, lam=LAM, eps=EPS).tolist() == [0.0] * size


def test_equal_branches_keep_their_standing_in_the_group_alone():
    rewards, is_branch = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([False, False, True, True])
    both, alone = (hybrid_advantages(rewards, is_branch, lam=lam, eps=EPS) for lam in (LAM, 1.0))
    torch.testing.assert_close(both, alone * torch.tensor([1, 1, LAM, LAM]))


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("others", [[], [NAN, NAN]])
def test_a_branch_alone_in_its_tree_has_the_advantage_of_the_group(lam, others):
    """Rewards 0, 0, 1: mean 1/3, variance 1/3."""
    rewards = torch.tensor([0.0, 0.0, 1.0, *others], dtype=torch.float64)
    ours = hybrid_advantages(rewards, torch.arange(len(rewards)) >= 2, lam=lam, eps=1e-9)
    expected = [-(3**-0.5), -(3**-0.5), 2 * 3**-0.5, *[0.0] * len(others)]
    assert ours.tolist() == pytest.approx(expected)


def test_an_unscorable_trajectory_is_as_if_it_were_not_there():
    rewards, is_branch = drawn(3, 5, 4)
    alone = hybrid_advantages(rewards, is_branch, lam=LAM, eps=EPS)
    more = torch.cat([rewards[:4], torch.tensor([NAN, NAN]), rewards[4:]])
    among = torch.cat([is_branch[:4], torch.tensor([True, False]), is_branch[4:]])
    with_more = hybrid_advantages(more, among, lam=LAM, eps=EPS)
    assert with_more[4:6].tolist() == [0.0, 0.0]
    torch.testing.assert_close(torch.cat([with_more[:4], with_more[6:]]), alone)


def test_no_trajectory_and_one_alone_have_no_advantage():
    nothing = torch.zeros(0)
    assert hybrid_advantages(nothing, nothing.bool(), lam=LAM, eps=EPS).shape == (0,)
    for branch in (False, True):
        assert hybrid_advantages(torch.ones(1), torch.tensor([branch]), lam=LAM, eps=EPS).tolist() == [0.0]


def test_half_precision_rewards_are_counted_in_float32():
    rewards, is_branch = torch.tensor([0.0, 1.0, 0.25, 0.5], dtype=torch.bfloat16), torch.arange(4) >= 2
    ours = hybrid_advantages(rewards, is_branch, lam=LAM, eps=EPS)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, hybrid_advantages(rewards.float(), is_branch, lam=LAM, eps=EPS))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"is_branch": torch.zeros(3, dtype=torch.bool)}, r"both be \(G,\)"),
        ({"is_branch": torch.zeros(4)}, r"both be \(G,\)"),
        ({"rewards": torch.zeros(2, 2), "is_branch": torch.zeros(2, 2, dtype=torch.bool)}, r"both be \(G,\)"),
        ({"lam": 1.5}, "lam must lie"),
        ({"lam": NAN}, "lam must lie"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"rewards": torch.tensor([0.0, 1.0, -math.inf, 0.0])}, "infinite"),
    ],
)
def test_what_does_not_fit_is_refused(change, told):
    fits = {"rewards": torch.zeros(4), "is_branch": torch.zeros(4, dtype=torch.bool), "lam": LAM, "eps": EPS}
    hybrid_advantages(**fits)
    with pytest.raises(ValueError, match=told):
        hybrid_advantages(**{**fits, **change})


@pytest.mark.parametrize(
    ("own", "branches", "joins"),
    [
        ([0.0, 0.0], [0.0, 1.0], True),
        ([0.0, 1.0], [1.0, 1.0], False),  # equal is not higher
        ([1.0], [0.9, 0.9, 0.9], False),
        ([-1.0, -1.0], [0.0], True),
        ([0.0], [], False),
        ([], [], False),
        ([], [-1.0], True),
        ([0.5, NAN], [NAN, 1.0], True),
        ([0.5, NAN], [NAN, 0.25], False),
        ([NAN], [-1.0], True),
        ([0.0], [NAN], False),
        ([NAN], [NAN], False),
    ],
)
def test_the_branches_join_only_if_their_best_is_strictly_better(own, branches, joins):
    assert join_experts(torch.tensor(own), torch.tensor(branches)) is joins


def test_the_factor_is_zero_exactly_on_prefix_tokens_of_negative_rows():
    prefix = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    factors = detach_prefix(prefix, torch.tensor([-1.0, 2.0, 0.0, -3.0, -1e-30]))
    assert factors.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert factors.dtype == torch.float32
    assert detach_prefix(torch.zeros(0, 3).bool(), torch.zeros(0)).shape == (0, 3)
    assert detach_prefix(torch.zeros(2, 0).bool(), torch.zeros(2)).shape == (2, 0)


@pytest.mark.parametrize(
    ("prefix", "advantages"),
    [
        (torch.zeros(2, 3).bool(), torch.zeros(3)),
        (torch.zeros(2, 3).bool(), torch.zeros(2, 1)),
        (torch.zeros(2, 3), torch.zeros(2)),
        (torch.zeros(3).bool(), torch.zeros(3)),
    ],
)
def test_a_prefix_mask_that_does_not_fit_is_refused(prefix, advantages):
    with pytest.raises(ValueError, match="prefix_mask must be bool"):
        detach_prefix(prefix, advantages)


class Branches:
    """Four branches of six tokens over five words; the first three tokens are the expert's, written once for all.

    ``prefix`` (3, V) are the logits of the shared tokens, ``suffix`` (G, 3, V) each branch's own: the gradient at a
    token's logits tells what that token learnt.
    """

    words, shared, rows = 5, 3, 4

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(0)
        self.prefix = torch.randn(self.shared, self.words, dtype=torch.float64, generator=source).requires_grad_()
        self.suffix = torch.randn(
            self.rows, self.shared, self.words, dtype=torch.float64, generator=source
        ).requires_grad_()
        self.tokens = torch.randint(self.words, (self.rows, 6), generator=source)
        self.tokens[:, : self.shared] = self.tokens[0, : self.shared]
        self.prefix_mask = (torch.arange(6) < self.shared).expand(self.rows, 6)
        # Somewhat off the sampling policy, within the clip and beyond it.
        self.drift = 0.3 * torch.randn(self.rows, 6, dtype=torch.float64, generator=source)

    def gradients(self, advantages: torch.Tensor, factors: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of GRPO's clipped loss whose per-token terms are multiplied by ``factors``."""
        logits = torch.cat([self.prefix.expand(self.rows, -1, -1), self.suffix], dim=1)
        logp = logits.log_softmax(dim=-1).gather(2, self.tokens[..., None])[..., 0]
        ratio = torch.exp(logp - (logp.detach() - self.drift))
        gain = advantages[:, None]
        terms = -torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
        return torch.autograd.grad((factors * terms).mean(), [self.prefix, self.suffix])

    def closed_form(self, row: int, advantage: float) -> torch.Tensor:
        """d loss / d prefix logits of one row: -A rho (onehot - pi) / tokens, 0 where the clip holds it."""
        rho = self.drift[row, : self.shared].exp()
        held = rho > 1 + CLIP if advantage > 0 else rho < 1 - CLIP
        onehot = torch.nn.functional.one_hot(self.tokens[row, : self.shared], self.words)
        pull = -advantage * rho.masked_fill(held, 0.0)[:, None] * (onehot - self.prefix.detach().softmax(dim=-1))
        return pull / self.tokens.numel()


def test_where_all_branches_failed_the_prefix_gets_no_gradient_and_the_suffix_all_of_its_own():
    branches, advantages = Branches(), torch.tensor([-1.0, -0.2, -2.0, -0.5], dtype=torch.float64)
    plain = branches.gradients(advantages, 1.0)
    prefix, suffix = branches.gradients(advantages, detach_prefix(branches.prefix_mask, advantages))
    assert plain[0].abs().max() > 1e-3
    assert not prefix.any()
    assert torch.equal(suffix, plain[1])
    assert suffix.abs().max() > 1e-3


def test_where_all_branches_did_well_nothing_is_detached():
    branches, advantages = Branches(), torch.tensor([1.0, 0.2, 2.0, 0.0], dtype=torch.float64)
    plain = branches.gradients(advantages, 1.0)
    ours = branches.gradients(advantages, detach_prefix(branches.prefix_mask, advantages))
    assert plain[0].abs().max() > 1e-3
    assert all(torch.equal(left, right) for left, right in zip(ours, plain, strict=True))


def test_in_a_mixed_group_the_shared_prefix_learns_from_the_good_branches_alone():
    branches, advantages = Branches(), torch.tensor([1.5, -1.0, 0.5, -1.0], dtype=torch.float64)
    plain = branches.gradients(advantages, 1.0)
    prefix, suffix = branches.gradients(advantages, detach_prefix(branches.prefix_mask, advantages))
    good = branches.closed_form(0, 1.5) + branches.closed_form(2, 0.5)
    torch.testing.assert_close(prefix, good)
    torch.testing.assert_close(plain[0], good + branches.closed_form(1, -1.0) + branches.closed_form(3, -1.0))
    assert (plain[0] - prefix).abs().max() > 1e-3
    assert torch.equal(suffix, plain[1])
