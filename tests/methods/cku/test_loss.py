"""CKU's losses against slow loops in plain Python and finite differences, and at their edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from skillweave.methods.cku.loss import (
    gradient_ascent_loss,
    npo_loss,
    retain_cross_entropy,
    retain_kl,
    simnpo_loss,
    steering_loss,
)

CAP = 4.0
LENGTHS = [5, 1, 0, 3]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(lengths=LENGTHS, *, width: int = 7, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token log-probabilities (B, T) in float64 around the cap, and their mask: a prompt of two, then the answer."""
    log_probs = -CAP + spread * torch.randn(len(lengths), width, generator=generator(), dtype=torch.float64)
    at = torch.arange(width) - 2
    return log_probs.clamp(max=-1e-3), (at >= 0) & (at < torch.tensor(lengths)[:, None])


def logits(count: int = 6, words: int = 9, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(count, words, generator=generator(seed), dtype=torch.float64)


def hidden(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def softened(margin: float) -> float:
    """-log sigmoid(margin), written so that neither side overflows."""
    return max(0.0, -margin) + math.log1p(math.exp(-abs(margin)))


def slope(loss, at: float, step: float = 1e-5) -> float:
    return (loss(at + step) - loss(at - step)) / (2 * step)


def gradient(values: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(values.sum(), leaf)[0]


# -- gradient ascent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [CAP, 0.5, math.inf])
def test_gradient_ascent_against_a_slow_loop(cap):
    log_probs, mask = rows()
    log_probs.requires_grad_()
    values = gradient_ascent_loss(log_probs, mask, cap=cap)
    slopes = gradient(values, log_probs)
    assert values.shape == (len(LENGTHS),)
    for row, length in enumerate(LENGTHS):
        tokens = log_probs[row].tolist()[2 : 2 + length]
        mean = -sum(min(-token, cap) for token in tokens) / length if length else 0.0
        assert values[row].item() == pytest.approx(mean, rel=1e-12)
        pulls = [1 / length if -token < cap else 0.0 for token in tokens]
        assert slopes[row].tolist() == pytest.approx([0.0, 0.0, *pulls, *[0.0] * (5 - length)], rel=1e-12)
    assert gradcheck(lambda tokens: gradient_ascent_loss(tokens, mask, cap=cap), log_probs)


def test_a_token_at_the_cap_or_beyond_teaches_no_more():
    log_probs = torch.tensor([[-CAP + 1e-6, -CAP, -CAP - 1e-6, -math.inf]]).requires_grad_()
    values = gradient_ascent_loss(log_probs, torch.ones(1, 4, dtype=torch.bool), cap=CAP)
    assert gradient(values, log_probs).tolist() == [[0.25, 0.0, 0.0, 0.0]]
    assert values.item() == pytest.approx(-CAP, abs=1e-6)


def test_a_forgotten_answer_costs_minus_the_cap_and_a_certain_one_nothing():
    mask = torch.ones(2, 3, dtype=torch.bool)
    log_probs = torch.tensor([[-1e9] * 3, [0.0] * 3])
    assert gradient_ascent_loss(log_probs, mask, cap=CAP).tolist() == [-CAP, 0.0]


def test_without_a_cap_gradient_ascent_is_cross_entropy_upside_down():
    words = logits().requires_grad_()
    targets = torch.arange(6) % 4
    log_probs = words.log_softmax(dim=-1).gather(1, targets[:, None]).T
    ours = gradient_ascent_loss(log_probs, torch.ones(1, 6, dtype=torch.bool), cap=math.inf)
    entropy = torch.nn.functional.cross_entropy(words, targets)
    torch.testing.assert_close(ours[0], -entropy)
    torch.testing.assert_close(gradient(ours, words), -gradient(entropy, words))


@pytest.mark.parametrize("under", [math.nan, math.inf, -math.inf, 1e30])
def test_whatever_stands_under_padding_changes_no_value_and_no_gradient(under):
    log_probs, mask = rows()
    clean = gradient_ascent_loss(log_probs, mask, cap=CAP)
    wider = torch.cat([log_probs, torch.zeros(len(LENGTHS), 3, dtype=torch.float64)], dim=1)
    reach = torch.cat([mask, torch.zeros(len(LENGTHS), 3, dtype=torch.bool)], dim=1)
    wider = torch.where(reach, wider, under).requires_grad_()
    values = gradient_ascent_loss(wider, reach, cap=CAP)
    assert torch.equal(values, clean)
    slopes = gradient(values, wider)
    assert slopes.isfinite().all()
    assert not slopes[~reach].any()


def test_a_row_without_tokens_costs_nothing_and_teaches_nothing():
    log_probs = torch.full((2, 3), -2.0).requires_grad_()
    values = gradient_ascent_loss(log_probs, torch.zeros(2, 3, dtype=torch.bool), cap=CAP)
    assert values.tolist() == [0.0, 0.0]
    assert not gradient(values, log_probs).any()
    assert gradient_ascent_loss(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), cap=CAP).shape == (0,)


def test_a_nan_on_a_token_stays_in_its_row():
    log_probs, mask = rows()
    clean = gradient_ascent_loss(log_probs, mask, cap=CAP)
    log_probs[0, 3] = math.nan
    values = gradient_ascent_loss(log_probs, mask, cap=CAP)
    assert values[0].isnan()
    assert torch.equal(values[1:], clean[1:])


def test_half_precision_is_averaged_in_float32():
    log_probs = torch.full((1, 1000), -1.0078125, dtype=torch.bfloat16)  # a number that bfloat16 holds
    values = gradient_ascent_loss(log_probs, torch.ones(1, 1000, dtype=torch.bool), cap=CAP)
    assert values.dtype == torch.float32
    assert values.item() == pytest.approx(-1.0078125, rel=1e-6)


# -- npo and simnpo ----------------------------------------------------------------------------------------------------


def drawn(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probabilities of answers, now and before."""
    both = -12 + 4 * torch.randn(2, count, generator=generator(), dtype=torch.float64)
    return both[0].requires_grad_(), both[1]


@pytest.mark.parametrize("beta", [0.05, 1.0, 5.0])
def test_npo_against_a_slow_loop(beta):
    log_prob, reference = drawn()
    values = npo_loss(log_prob, reference, beta=beta)
    slopes = gradient(values, log_prob)
    for row, (now, before) in enumerate(zip(log_prob.tolist(), reference.tolist(), strict=True)):
        margin = -beta * (now - before)
        assert values[row].item() == pytest.approx(2 / beta * softened(margin), rel=1e-12)
        assert slopes[row].item() == pytest.approx(2 / (1 + math.exp(margin)), rel=1e-9)
    assert gradcheck(lambda now: npo_loss(now, reference, beta=beta), log_prob)


def test_npo_tends_to_gradient_ascent_as_beta_goes_to_zero():
    log_prob, reference = drawn()
    away = []
    for beta in (1.0, 0.1, 0.01, 0.001):
        values = npo_loss(log_prob, reference, beta=beta)
        away.append((gradient(values, log_prob) - 1).abs().max().item())
        shift = values.detach() - 2 / beta * math.log(2) - (log_prob - reference).detach()
    # First order in beta: sigmoid(t) = 1/2 + t/4 + ...; the value, its constant taken off, tends to the log ratio.
    assert away[3] < 0.1 * away[1]
    assert away[3] == pytest.approx(0.001 * (log_prob - reference).abs().max().item() / 2, rel=1e-3)
    assert shift.abs().max().item() < 0.05


@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_at_its_start_npo_pulls_like_gradient_ascent_whatever_beta(beta):
    log_prob, _ = drawn()
    values = npo_loss(log_prob, log_prob.detach().clone(), beta=beta)
    torch.testing.assert_close(values.detach(), torch.full_like(values, 2 / beta * math.log(2)))
    torch.testing.assert_close(gradient(values, log_prob), torch.ones_like(values))


def test_npo_lets_go_of_what_is_forgotten():
    reference = torch.full((4,), -5.0, dtype=torch.float64)
    log_prob = (reference - torch.tensor([0.0, 20.0, 50.0, 1e5], dtype=torch.float64)).requires_grad_()
    values = npo_loss(log_prob, reference, beta=1.0)
    slopes = gradient(values, log_prob)
    assert values.diff().lt(0).all()
    assert slopes.diff().lt(0).all()
    assert slopes[1] < 1e-8
    assert slopes[3] == values[3] == 0


@pytest.mark.parametrize(("beta", "delta"), [(0.5, 0.0), (2.0, 1.5), (4.0, 0.3)])
def test_simnpo_against_a_slow_loop(beta, delta):
    log_prob, _ = drawn()
    lengths = torch.arange(1, 9)
    values = simnpo_loss(log_prob, lengths, beta=beta, delta=delta)
    slopes = gradient(values, log_prob)
    for row, (total, length) in enumerate(zip(log_prob.tolist(), lengths.tolist(), strict=True)):

        def slow(total: float, length: int = length) -> float:
            return 2 / beta * softened(beta * (-total / length - delta))

        assert values[row].item() == pytest.approx(slow(total), rel=1e-12)
        assert slopes[row].item() == pytest.approx(slope(slow, total), rel=1e-5, abs=1e-9)
    assert gradcheck(lambda now: simnpo_loss(now, lengths, beta=beta, delta=delta), log_prob)


def test_simnpo_saturates_once_a_token_is_unlikelier_than_delta():
    """The same mean per token costs the same at any length; the pull fades beyond delta and never passes 2/|y|."""
    lengths = torch.tensor([1, 4, 40])
    for surprise, least, most in ((0.0, 1.9, 2.0), (2.0, 0.99, 1.01), (6.0, 0.0, 1e-4), (60.0, 0.0, 1e-12)):
        log_prob = (-surprise * lengths.double()).requires_grad_()
        values = simnpo_loss(log_prob, lengths, beta=3.0, delta=2.0)
        pulls = gradient(values, log_prob) * lengths
        torch.testing.assert_close(values, values[:1].expand(3))
        assert (pulls >= least).all()
        assert (pulls <= most).all()


def test_simnpo_is_npo_whose_reference_gives_every_token_delta():
    """One token: -log pi - delta = -(log pi - log pi_ref) where log pi_ref = -delta."""
    log_prob, _ = drawn()
    one = torch.ones(8, dtype=torch.int64)
    ours = simnpo_loss(log_prob, one, beta=0.7, delta=2.5)
    torch.testing.assert_close(ours, npo_loss(log_prob, torch.full_like(log_prob, -2.5), beta=0.7))


def test_simnpo_of_no_tokens_costs_nothing():
    log_prob = torch.tensor([0.0, -3.0]).requires_grad_()
    values = simnpo_loss(log_prob, torch.tensor([0, 3]), beta=1.0, delta=0.0)
    slopes = gradient(values, log_prob)
    assert values[0] == slopes[0] == 0
    assert values[1] > 0
    assert slopes[1] > 0


@pytest.mark.parametrize("far", [-1e6, 0.0])
def test_extreme_log_probabilities_stay_finite_in_float32(far):
    for other in (-1e6, 0.0):
        log_prob = torch.tensor([far]).requires_grad_()
        for values in (
            npo_loss(log_prob, torch.tensor([other]), beta=0.1),
            simnpo_loss(log_prob, torch.tensor([2]), beta=2.5, delta=-other),
        ):
            assert values.isfinite().all()
            assert (values >= 0).all()
            assert gradient(values, log_prob).isfinite().all()


def test_a_nan_stays_in_its_answer():
    log_prob, reference = (tensor.detach() for tensor in drawn())
    lengths = torch.full((8,), 3)
    for loss in (
        lambda now: npo_loss(now, reference, beta=0.5),
        lambda now: simnpo_loss(now, lengths, beta=0.5, delta=1.0),
    ):
        broken = log_prob.clone()
        broken[2] = math.nan
        assert loss(broken).isnan().tolist() == [row == 2 for row in range(8)]
        assert torch.equal(loss(broken)[3:], loss(log_prob)[3:])


# -- rmu ---------------------------------------------------------------------------------------------------------------


def slow_steering(hidden, target, mask) -> float:
    costs = [
        sum((value - goal) ** 2 for value, goal in zip(token, wanted, strict=True)) / len(token)
        for row, goals, kept in zip(hidden.tolist(), target.tolist(), mask.tolist(), strict=True)
        for token, wanted, keep in zip(row, goals, kept, strict=True)
        if keep
    ]
    return sum(costs) / len(costs) if costs else 0.0


def test_both_terms_of_rmu_against_a_slow_loop_and_finite_differences():
    forget, retain, before = hidden(4, 7, 3), hidden(2, 5, 3, seed=1), hidden(2, 5, 3, seed=2)
    control, (_, mask) = 6 * hidden(3, seed=3), rows()
    kept = torch.rand(2, 5, generator=generator()) < 0.5

    def loss(forget: torch.Tensor, retain: torch.Tensor) -> torch.Tensor:
        return steering_loss(forget, control, mask) + 1.7 * steering_loss(retain, before, kept)

    expected = slow_steering(forget, control.expand(4, 7, 3), mask) + 1.7 * slow_steering(retain, before, kept)
    assert loss(forget, retain).shape == ()
    assert loss(forget, retain).item() == pytest.approx(expected, rel=1e-12)
    assert gradcheck(loss, (forget.requires_grad_(), retain.requires_grad_()))


def test_hidden_states_at_their_target_cost_nothing():
    states, (_, mask) = hidden(4, 7, 3), rows()
    assert steering_loss(states, states.clone(), mask) == 0
    control = hidden(3, seed=1)
    there = control.expand(4, 7, 3)
    assert steering_loss(there, control, mask) == 0
    # Half as far costs a quarter.
    far, near = (steering_loss(control + away * torch.ones(4, 7, 3), control, mask) for away in (2.0, 1.0))
    torch.testing.assert_close(far, torch.tensor(4.0, dtype=torch.float64))
    torch.testing.assert_close(near, torch.tensor(1.0, dtype=torch.float64))


def test_every_token_weighs_alike_however_long_its_row():
    states = torch.zeros(2, 4, 3)
    states[0, 0] = 2.0
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    assert steering_loss(states, torch.zeros(3), mask).item() == 4 / 4


@pytest.mark.parametrize("under", [math.nan, math.inf])
def test_hidden_states_under_padding_count_nowhere(under):
    states, before, (_, mask) = hidden(4, 7, 3), hidden(4, 7, 3, seed=1), rows()
    clean = steering_loss(states, before, mask)
    spoilt = torch.where(mask[..., None], states, under).requires_grad_()
    value = steering_loss(spoilt, torch.where(mask[..., None], before, under), mask)
    assert torch.equal(value, clean)
    slopes = gradient(value, spoilt)
    assert slopes.isfinite().all()
    assert not slopes[~mask].any()
    states[0, 3] = math.nan
    assert steering_loss(states, before, mask).isnan()


def test_steering_without_tokens_costs_nothing():
    states = hidden(2, 3, 4).requires_grad_()
    value = steering_loss(states, torch.ones(4), torch.zeros(2, 3, dtype=torch.bool))
    assert value == 0
    assert not gradient(value, states).any()


def test_half_precision_hidden_states_are_compared_in_float32():
    states = torch.full((1, 512, 8), 3.0, dtype=torch.bfloat16)
    value = steering_loss(states, torch.full((8,), 2.9921875), torch.ones(1, 512, dtype=torch.bool))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.0078125**2, rel=1e-6)


# -- retain cross-entropy ----------------------------------------------------------------------------------------------


def test_retain_cross_entropy_against_a_slow_loop():
    log_probs, mask = rows()
    log_probs.requires_grad_()
    value = retain_cross_entropy(log_probs, mask)
    tokens = [token for row, length in enumerate(LENGTHS) for token in log_probs[row].tolist()[2 : 2 + length]]
    assert value.shape == ()
    assert value.item() == pytest.approx(-sum(tokens) / len(tokens), rel=1e-12)  # every token weighs the same
    torch.testing.assert_close(gradient(value, log_probs), -mask.double() / len(tokens))


# -- retain KL ---------------------------------------------------------------------------------------------------------


def slow_kl(policy: list[float], reference: list[float]) -> float:
    ours, theirs = (sum(math.exp(value) for value in side) for side in (policy, reference))
    return sum(
        math.exp(there) / theirs * ((there - math.log(theirs)) - (here - math.log(ours)))
        for here, there in zip(policy, reference, strict=True)
    )


def test_retain_kl_against_a_slow_loop_and_finite_differences():
    policy, reference = logits().requires_grad_(), logits(seed=1)
    values = retain_kl(policy, reference)
    expected = [slow_kl(here, there) for here, there in zip(policy.tolist(), reference.tolist(), strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-12)
    assert gradcheck(lambda here: retain_kl(here, reference), policy)
    # d KL / d logits is the difference of the two distributions.
    torch.testing.assert_close(gradient(values, policy), (policy.softmax(-1) - reference.softmax(-1)).detach())


def test_retain_kl_weighs_with_the_reference():
    sure, torn = torch.tensor([[math.log(0.9), math.log(0.1)]]), torch.zeros(1, 2)
    assert retain_kl(torn, sure).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-5)
    assert retain_kl(sure, torn).item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), rel=1e-5)


def test_retain_kl_is_zero_where_equal_and_never_below():
    """Of distributions that differ by rounding alone the plain sum is often negative; its gradient is whole all the
    same."""
    reference = 5 * torch.randn(2000, 50, generator=generator())
    assert not retain_kl(reference, reference.clone()).any()
    # Another constant on all words is the same distribution.
    assert retain_kl(reference + 7, reference).max().item() < 1e-5
    policy = (reference + 1e-4 * torch.randn(2000, 50, generator=generator(1))).requires_grad_()
    values = retain_kl(policy, reference)
    here, there = policy.log_softmax(-1), reference.log_softmax(-1)
    below = (there.exp() * (there - here)).sum(-1) < 0
    assert below.any()
    assert (values >= 0).all()
    assert gradient(values, policy)[below].abs().sum(dim=-1).min() > 0


def test_words_the_reference_excludes_count_nothing_and_those_the_policy_excludes_infinity():
    policy = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, 0.0], [0.0, 0.0, -math.inf]]).requires_grad_()
    reference = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]])
    values = retain_kl(policy, reference)
    assert values.tolist() == pytest.approx([0.0, math.log(1.5), math.inf], abs=1e-6)
    assert gradient(values[:2], policy)[:2].isfinite().all()


def test_retain_kl_is_taken_in_float32_and_lets_a_nan_through():
    policy, reference = logits().bfloat16(), logits(seed=1).bfloat16()
    values = retain_kl(policy, reference)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, retain_kl(policy.double(), reference.double()).float())
    policy[2, 0], reference[4, 1] = math.nan, math.nan
    assert retain_kl(policy, reference).isnan().tolist() == [False, False, True, False, True, False]


def test_no_position_no_divergence():
    assert retain_kl(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)
    assert retain_kl(torch.zeros(1, 1), torch.ones(1, 1)).tolist() == [0.0]


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: gradient_ascent_loss(torch.zeros(2, 3), torch.ones(2, 3), cap=1.0), "must be bool"),
        (lambda: gradient_ascent_loss(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool), cap=1.0), r"\(2, 3\)"),
        (lambda: gradient_ascent_loss(torch.zeros(2, 3), torch.ones(2, 3).bool(), cap=0.0), "cap must be above 0"),
        (lambda: gradient_ascent_loss(torch.zeros(2, 3), torch.ones(2, 3).bool(), cap=math.nan), "cap must be above"),
        (lambda: npo_loss(torch.zeros(2), torch.zeros(3), beta=1.0), "log_prob and reference must both be"),
        (lambda: npo_loss(torch.zeros(2, 1), torch.zeros(2, 1), beta=1.0), "must both be"),
        (lambda: npo_loss(torch.zeros(2), torch.zeros(2), beta=0.0), "beta must be above 0, not 0.0"),
        (lambda: simnpo_loss(torch.zeros(2), torch.ones(1), beta=1.0, delta=0.0), "log_prob and lengths"),
        (lambda: simnpo_loss(torch.zeros(2), torch.ones(2), beta=-1.0, delta=0.0), "beta must be above 0"),
        (lambda: steering_loss(torch.zeros(2, 3, 4), torch.zeros(3), torch.ones(2, 3).bool()), "target that or"),
        (lambda: steering_loss(torch.zeros(2, 3), torch.zeros(3), torch.ones(2, 3).bool()), "hidden must be"),
        (lambda: steering_loss(torch.zeros(2, 3, 4), torch.zeros(4), torch.ones(2, 4).bool()), "mask must be"),
        (lambda: retain_cross_entropy(torch.zeros(2, 3), torch.ones(2, 3)), "mask must be"),
        (lambda: retain_kl(torch.zeros(2, 3), torch.zeros(2, 4)), "logits must both be"),
        (lambda: retain_kl(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), "logits must both be"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
