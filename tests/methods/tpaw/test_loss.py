"""TPAW's losses against slow loops in plain Python, and at their edges."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.slow_losses import ETA, GAMMA, LAM, columns, drawn, slow_loss, slow_weights, softened
from skillweave.methods.tpaw import dpo_loss, spin_loss, team_loss, tspin_loss

LN2 = math.log(2)
SOFT = 1e-8
"""torch's softplus leaves out what is below e^-20."""


def slope(loss, at: float, step: float = 1e-5) -> float:
    return (loss(at + step) - loss(at - step)) / (2 * step)


def with_gradient(loss, four, **settings):
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    values, statistics = loss(*leaves, *four[2:], **settings)
    return values, statistics, torch.autograd.grad(values.sum(), leaves)


@pytest.mark.parametrize(("players", "pairs"), [(1, 1), (1, 7), (2, 5), (3, 1), (3, 40)])
def test_team_loss_and_gradient_against_a_slow_loop(players, pairs):
    four = drawn(players, pairs)
    values, statistics, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    assert values.shape == (pairs,)
    for at, column in enumerate(columns(four)):
        alpha, beta = slow_weights(*column)
        assert values[at].item() == pytest.approx(slow_loss(*column, alpha, beta), abs=SOFT)
        assert statistics["alpha"][:, at].tolist() == alpha
        assert statistics["beta"][:, at].tolist() == pytest.approx(beta, rel=1e-12)
        target, generated, *rest = column
        by_target = slope(lambda value, g=generated, r=rest, w=(alpha, beta): slow_loss(value, g, *r, *w), target)
        by_generated = slope(lambda value, t=target, r=rest, w=(alpha, beta): slow_loss(t, value, *r, *w), generated)
        assert gradients[0][at].item() == pytest.approx(by_target, abs=SOFT)
        assert gradients[1][at].item() == pytest.approx(by_generated, abs=SOFT)


@pytest.mark.parametrize("loss", [spin_loss, dpo_loss])
def test_spin_and_dpo_against_a_slow_loop(loss):
    four = drawn(1, 12)
    values, statistics, gradients = with_gradient(loss, four, lam=LAM)
    for at, (target, generated, (of_target,), (of_generated,)) in enumerate(columns(four)):
        margin = LAM * ((target - of_target) - (generated - of_generated))
        pull = LAM / (1 + math.exp(margin))
        assert values[at].item() == pytest.approx(softened(margin), abs=SOFT)
        assert gradients[0][at].item() == pytest.approx(-pull, abs=SOFT)
        assert gradients[1][at].item() == pytest.approx(pull, abs=SOFT)
        assert statistics["target_reward"][0, at].item() == pytest.approx(LAM * (target - of_target))
        assert statistics["generated_reward"][0, at].item() == pytest.approx(LAM * (generated - of_generated))
    assert set(statistics) == {"target_reward", "generated_reward"}


def test_tspin_against_a_slow_loop():
    four = drawn(1, 12)
    first = drawn(1, 12, seed=9)[0].requires_grad_()
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    values, _ = tspin_loss(*leaves, *four[2:], lam=LAM, policy_first=first)
    gradients = torch.autograd.grad(values.sum(), [*leaves, first])

    def slow(target: float, generated: float, begun: float) -> float:
        return softened(LAM * (target - generated)) + softened(LAM * (generated - begun))

    for at in range(12):
        three = [leaf[at].item() for leaf in (*leaves, first)]
        assert values[at].item() == pytest.approx(slow(*three), abs=SOFT)
        for which, gradient in enumerate(gradients):
            expected = slope(lambda value, w=which, t=three: slow(*t[:w], value, *t[w + 1 :]), three[which])
            assert gradient[at].item() == pytest.approx(expected, abs=SOFT)
    # Only the policy counts: other players, same loss.
    others = drawn(1, 12, seed=5)[2:]
    assert torch.equal(values, tspin_loss(*leaves, *others, lam=LAM, policy_first=first)[0])


def test_tspins_second_term_is_constant_where_the_first_answer_is_the_generation():
    four = drawn(1, 6)
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    values, _ = tspin_loss(*leaves, *four[2:], lam=LAM, policy_first=leaves[1])
    now = torch.nn.functional.softplus(-LAM * (leaves[0] - leaves[1]))
    torch.testing.assert_close(values, now + LN2)
    for ours, alone in zip(
        torch.autograd.grad(values.sum(), leaves), torch.autograd.grad(now.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, alone)


def test_at_a_target_as_likely_as_before_the_loss_is_continuous_and_its_slope_jumps_by_eta():
    base = torch.tensor([-7.0], dtype=torch.float64)
    generated, player = torch.tensor([-9.0], dtype=torch.float64), torch.tensor([[-7.0]], dtype=torch.float64)
    losses, slopes = [], []
    for shift in (-1e-9, 0.0, 1e-9):
        four = [base + shift, generated, player, generated[None]]
        values, statistics, (gradient, _) = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
        losses.append(values.item())
        slopes.append(gradient.item())
        assert statistics["alpha"].item() == (ETA if shift <= 0 else 1.0)
    assert losses == pytest.approx([LN2] * 3, abs=1e-8)
    # At zero itself the target counts as fallen behind.
    assert slopes == pytest.approx([-ETA * LAM / 2, -ETA * LAM / 2, -LAM / 2], rel=1e-6)


def test_as_a_round_begins_the_newest_player_pulls_with_eta_at_every_pair():
    four = drawn(1, 9)
    same = [four[0], four[1], four[0][None], four[1][None]]
    values, statistics, gradients = with_gradient(team_loss, same, lam=LAM, eta=ETA, gamma=GAMMA)
    assert (statistics["alpha"] == ETA).all()
    assert not statistics["target_reward"].any()
    torch.testing.assert_close(values, torch.full_like(values, LN2))
    torch.testing.assert_close(gradients[0], torch.full_like(values, -ETA * LAM / 2))
    torch.testing.assert_close(gradients[1], torch.full_like(values, LAM / 2))


def test_a_reward_within_the_tolerance_counts_as_none():
    policy, player = torch.tensor([-2.0, -2.0, -2.0]), torch.tensor([[-2.05, -2.15, -1.0]])
    for tolerance, raised in ((0.0, [1, 1, 6]), (0.1, [6, 1, 6]), (0.2, [6, 6, 6])):
        _, told = team_loss(policy, policy, player, player, lam=0.3, eta=6.0, gamma=0.5, tolerance=tolerance)
        assert told["alpha"].tolist() == [raised]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 50.0])
def test_one_player_and_eta_one_is_spin_to_the_bit(gamma):
    four = [tensor.float() for tensor in drawn(1, 20)]
    ours = with_gradient(team_loss, four, lam=LAM, eta=1.0, gamma=gamma)
    spin = with_gradient(spin_loss, four, lam=LAM)
    assert torch.equal(ours[0], spin[0])
    assert all(torch.equal(left, right) for left, right in zip(ours[2], spin[2], strict=True))
    assert (ours[1]["beta"] == 1).all()


def test_a_generation_that_is_the_target_gives_a_constant_and_no_gradient():
    answer = drawn(1, 5)[0].requires_grad_()
    player = drawn(1, 5, seed=1)[2]
    values, _ = spin_loss(answer, answer, player, player, lam=LAM)
    torch.testing.assert_close(values.detach(), torch.full((5,), LN2, dtype=torch.float64))
    assert not torch.autograd.grad(values.sum(), answer)[0].any()
    # With eta the two sides no longer cancel: this is why equal pairs are dropped.
    behind = player + 1 + answer.detach() - player.max()
    values, _ = team_loss(answer, answer, behind.abs(), behind.abs(), lam=LAM, eta=ETA, gamma=GAMMA)
    assert torch.autograd.grad(values.sum(), answer)[0].all()


def test_no_gradient_passes_through_the_weights():
    four = drawn(3, 11)
    _, statistics, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    assert not any(tensor.requires_grad for tensor in statistics.values())
    # The same loss, its weights put in as constants.
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    margin = statistics["alpha"] * LAM * (leaves[0] - four[2]) - LAM * (leaves[1] - four[3])
    constant = -(statistics["beta"] * torch.nn.functional.logsigmoid(margin)).sum()
    for ours, expected in zip(gradients, torch.autograd.grad(constant, leaves), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_players_weights_do_not_depend_on_the_policy():
    """In the softmax over players all that the policy adds cancels: beta is a constant of the players and the pair.

    So to detach it changes no gradient, which the weights moving along confirm where no reward crosses zero.
    """
    four, other = drawn(3, 11), drawn(3, 11, seed=4)
    _, statistics, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    moved = team_loss(*other[:2], *four[2:], lam=LAM, eta=ETA, gamma=GAMMA)[1]["beta"]
    torch.testing.assert_close(moved, statistics["beta"])
    torch.testing.assert_close(moved, torch.softmax(GAMMA * LAM * (four[2] - four[3]), dim=0))
    for at, (target, *rest) in enumerate(columns(four)):
        by_target = slope(lambda value, r=rest: slow_loss(value, *r, *slow_weights(value, *r)), target)
        assert gradients[0][at].item() == pytest.approx(by_target, abs=SOFT)


def test_equal_players_share_the_weight_and_count_as_one():
    four = drawn(1, 8)
    one = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    three = with_gradient(
        team_loss, [*four[:2], four[2].expand(3, 8), four[3].expand(3, 8)], lam=LAM, eta=ETA, gamma=GAMMA
    )
    torch.testing.assert_close(three[1]["beta"], torch.full((3, 8), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(three[0], one[0])
    torch.testing.assert_close(three[2][0], one[2][0])


def test_without_gamma_all_players_weigh_alike_and_with_much_the_strongest_alone():
    four = drawn(3, 8)
    flat, statistics = team_loss(*four, lam=LAM, eta=ETA, gamma=0.0)
    torch.testing.assert_close(statistics["beta"], torch.full((3, 8), 1 / 3, dtype=torch.float64))
    alone = [team_loss(*four[:2], four[2][[j]], four[3][[j]], lam=LAM, eta=ETA, gamma=0.0)[0] for j in range(3)]
    torch.testing.assert_close(flat, torch.stack(alone).mean(dim=0))
    sharp, statistics = team_loss(*four, lam=LAM, eta=ETA, gamma=1e4)
    strongest = (statistics["target_reward"] - statistics["generated_reward"]).argmin(dim=0)
    torch.testing.assert_close(sharp, torch.stack(alone).gather(0, strongest[None])[0])


def test_the_order_of_the_players_makes_no_difference():
    four = drawn(3, 8)
    turned = [*four[:2], four[2][[2, 0, 1]], four[3][[2, 0, 1]]]
    ours, other = (with_gradient(team_loss, each, lam=LAM, eta=ETA, gamma=GAMMA) for each in (four, turned))
    torch.testing.assert_close(ours[0], other[0])
    torch.testing.assert_close(ours[2], other[2])
    torch.testing.assert_close(ours[1]["beta"][[2, 0, 1]], other[1]["beta"])


@pytest.mark.parametrize("far", [1e4, 1e6])
def test_extreme_log_probabilities_stay_finite_in_float32(far):
    sides = torch.cartesian_prod(*[torch.tensor([-far, far, 0.0])] * 4)
    players = torch.stack([sides[:, 2:], sides[:, 2:].flip(0), torch.zeros_like(sides[:, 2:])])
    four = [sides[:, 0], sides[:, 1], players[:, :, 0], players[:, :, 1]]
    one = [*four[:2], four[2][:1], four[3][:1]]
    for loss, inputs, settings in (
        (team_loss, four, {"eta": ETA, "gamma": GAMMA}),
        (spin_loss, one, {}),
        (tspin_loss, one, {"policy_first": four[2][0]}),
    ):
        values, statistics, gradients = with_gradient(loss, inputs, lam=LAM, **settings)
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all(tensor.isfinite().all() for tensor in statistics.values())
    values = team_loss(*four, lam=LAM, eta=ETA, gamma=GAMMA)[0]
    for at, column in enumerate(columns(one)):
        # exp of the plain softmax overflows here: one player is held against alone.
        alone = team_loss(*[tensor[..., [at]] for tensor in one], lam=LAM, eta=ETA, gamma=GAMMA)[0].item()
        alpha = ETA if column[0] <= column[2][0] else 1.0
        assert alone == pytest.approx(slow_loss(*column, [alpha], [1.0]), rel=1e-5, abs=1e-6)
    assert values.max() > far


@pytest.mark.parametrize("loss", ["team", "spin", "tspin"])
def test_no_pairs_no_loss(loss):
    four = drawn(1, 0)
    values, statistics, gradients = with_gradient(
        {"team": team_loss, "spin": spin_loss, "tspin": tspin_loss}[loss],
        four,
        lam=LAM,
        **{"team": {"eta": ETA, "gamma": GAMMA}, "tspin": {"policy_first": four[0]}}.get(loss, {}),
    )
    assert values.shape == gradients[0].shape == (0,)
    assert all(tensor.shape == (1, 0) for tensor in statistics.values())


@pytest.mark.parametrize("where", range(4))
def test_a_nan_stays_in_its_pair(where):
    four = drawn(3, 6)
    clean = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    four[where][..., 2] = math.nan
    values, _, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    rest = [0, 1, 3, 4, 5]
    assert values[2].isnan()
    assert torch.equal(values[rest], clean[0][rest])
    assert all(torch.equal(ours[rest], kept[rest]) for ours, kept in zip(gradients, clean[2], strict=True))


@pytest.mark.parametrize(
    ("which", "shape"),
    [
        (0, (5,)),
        (1, (5,)),
        (0, (4, 1)),
        (1, ()),
        (2, (4,)),
        (3, (4,)),
        (2, (2, 5)),
        (3, (3, 4)),
        (2, (1, 4)),
        (3, (2, 4, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(which, shape):
    four = drawn(2, 4)
    team_loss(*four, lam=LAM, eta=ETA, gamma=GAMMA)
    four[which] = torch.zeros(shape)
    with pytest.raises(ValueError, match="log-probabilities must both be"):
        team_loss(*four, lam=LAM, eta=ETA, gamma=GAMMA)
    with pytest.raises(ValueError, match="must both be"):
        tspin_loss(*four, lam=LAM, policy_first=torch.zeros(4))


@pytest.mark.parametrize("loss", [spin_loss, dpo_loss])
def test_spin_and_dpo_have_one_player(loss):
    with pytest.raises(ValueError, match="one player, not 2"):
        loss(*drawn(2, 4), lam=LAM)
