"""The ratios of an expert's prefix tokens against plain floats and finite differences, and at extreme values."""

from __future__ import annotations

import math

import pytest
import torch

from skillweave.methods.e3tir.ratios import log_prefix_ratio

KINDS = ["mixture", "shaped", "on_policy"]
INF = math.inf


def prefix_ratio(logp: torch.Tensor, old_logp: torch.Tensor, *, kind: str) -> torch.Tensor:
    """The ratio that TRL's loss computes from our logarithm."""
    return log_prefix_ratio(logp, old_logp, kind=kind).exp()


def slow_ratio(logp: float, old: float, kind: str) -> float:
    pi, pi_old = math.exp(logp), math.exp(old)
    return {"mixture": pi / (0.5 * pi_old + 0.5), "shaped": pi / (pi + 0.1), "on_policy": 1.0}[kind]


def drawn(shape: tuple[int, ...] = (4, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    logp, old = -4 * torch.rand(2, *shape, dtype=torch.float64, generator=source)
    return logp.requires_grad_(), old.requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_ratios_against_plain_floats(kind):
    logp, old = drawn()
    ratio = prefix_ratio(logp, old, kind=kind)
    assert ratio.shape == logp.shape
    expected = [
        slow_ratio(left, right, kind)
        for left, right in zip(logp.flatten().tolist(), old.flatten().tolist(), strict=True)
    ]
    assert ratio.flatten().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["mixture", "shaped"])
def test_gradients_against_finite_differences(kind):
    logp, old = drawn()
    (gradient,) = torch.autograd.grad(prefix_ratio(logp, old, kind=kind).sum(), logp)
    step = 1e-5
    for got, at, before in zip(*(tensor.flatten().tolist() for tensor in (gradient, logp, old)), strict=True):
        slope = (slow_ratio(at + step, before, kind) - slow_ratio(at - step, before, kind)) / (2 * step)
        assert got == pytest.approx(slope, rel=1e-8)


def test_gradients_are_those_of_the_modules_table():
    logp, old = drawn()
    for kind, slope in (
        ("mixture", lambda ratio, pi: ratio),
        ("shaped", lambda ratio, pi: ratio * 0.1 / (pi + 0.1)),
        ("on_policy", lambda ratio, pi: torch.ones_like(pi)),
    ):
        ratio = prefix_ratio(logp, old, kind=kind)
        (gradient,) = torch.autograd.grad(ratio.sum(), logp)
        torch.testing.assert_close(gradient, slope(ratio.detach(), logp.detach().exp()))


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows_into_the_old_log_probabilities(kind):
    logp, old = drawn()
    _, into_old = torch.autograd.grad(prefix_ratio(logp, old, kind=kind).sum(), [logp, old], allow_unused=True)
    assert into_old is None
    # Nor where both are one tensor, as in the first step after sampling.
    apart = torch.autograd.grad(prefix_ratio(logp, logp.detach(), kind=kind).sum(), logp)[0]
    assert torch.equal(torch.autograd.grad(prefix_ratio(logp, logp, kind=kind).sum(), logp)[0], apart)


def test_on_policy_with_a_weight_is_weighted_supervised_learning():
    logits = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    tokens, weight = torch.tensor([0, 3, 8, 1, 1, 5]), torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0, 0.1]).double()
    logp = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    (ours,) = torch.autograd.grad(-(weight * prefix_ratio(logp, logp, kind="on_policy")).sum(), logits)
    losses = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    torch.testing.assert_close(ours, torch.autograd.grad((weight * losses).sum(), logits)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_the_line_give_no_nan(kind, dtype):
    ends = torch.tensor([-INF, -1e4, -200.0, -50.0, 0.0], dtype=dtype)
    logp, old = torch.cartesian_prod(ends, ends).unbind(1)
    logp = logp.clone().requires_grad_()
    ratio = prefix_ratio(logp, old, kind=kind)
    (gradient,) = torch.autograd.grad(ratio.sum(), logp)
    assert ratio.dtype == torch.float32
    expected = [slow_ratio(left, right, kind) for left, right in zip(logp.tolist(), old.tolist(), strict=True)]
    assert ratio.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-38)
    excluded = logp.detach().isneginf()
    assert not gradient[excluded].any()
    assert gradient.isfinite().all()
    if kind == "on_policy":
        assert (gradient[~excluded] == 1).all()


def test_a_very_unlikely_token_keeps_its_logarithm_where_the_ratio_is_lost():
    logp = torch.tensor([-1e4])
    assert log_prefix_ratio(logp, logp, kind="mixture").item() == pytest.approx(-1e4 + math.log(2), rel=1e-7)
    assert log_prefix_ratio(logp, logp, kind="shaped").item() == pytest.approx(-1e4 + math.log(10), rel=1e-7)


@pytest.mark.parametrize("kind", ["mixture", "on_policy"])
def test_a_token_that_is_certain_has_ratio_one(kind):
    assert prefix_ratio(torch.zeros(3), torch.zeros(3), kind=kind).tolist() == [1.0] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_stays_at_its_token(kind):
    logp, old = (tensor.detach().clone() for tensor in drawn())
    clean = prefix_ratio(logp, old, kind=kind)
    logp[1, 2] = math.nan
    ratio = prefix_ratio(logp, old, kind=kind)
    assert ratio.isnan().nonzero().tolist() == [[1, 2]]
    rest = ~ratio.isnan()
    assert torch.equal(ratio[rest], clean[rest])


@pytest.mark.parametrize(("kind", "from_pi"), [("mixture", 2 / 3), ("shaped", 0.4), ("on_policy", 0.0)])
def test_grpos_clip_lets_a_negative_advantage_push_only_the_likely_tokens(kind, from_pi):
    """The module's statement on eps = 0.2: min(ratio A, clip(ratio) A) at A = -1 and at A = 1."""
    pi = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for gain in (-1.0, 1.0):
        logp = pi.log().requires_grad_()
        ratio = prefix_ratio(logp, logp, kind=kind)
        (gradient,) = torch.autograd.grad(torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).sum(), logp)
        pushed = pi > from_pi if gain < 0 else torch.ones_like(pi, dtype=torch.bool)
        clear = (pi - from_pi).abs() > 1e-6
        assert torch.equal((gradient != 0)[clear], pushed[clear])


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_no_ratios(kind):
    assert prefix_ratio(torch.zeros(2, 0), torch.zeros(2, 0), kind=kind).shape == (2, 0)


def test_an_unknown_kind_and_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="kind must be one of mixture, shaped, on_policy, not 'luffy'"):
        prefix_ratio(torch.zeros(2), torch.zeros(2), kind="luffy")
    with pytest.raises(ValueError, match="must have one shape"):
        prefix_ratio(torch.zeros(2, 3), torch.zeros(3), kind="mixture")
