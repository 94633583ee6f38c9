"""Both divergences from the kept part of a distribution, against slow loops in float64 and in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from skillweave.skillzip.refine.loss import answer_kl, answer_tv, kept_part


def random_logits(seed: int, n: int = 5, vocabulary: int = 30) -> torch.Tensor:
    return 3 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


def events(teacher: torch.Tensor, student: torch.Tensor, k: int) -> list[list[tuple[float, float]]]:
    """For each row (p, q) of the teacher's k likeliest tokens, and of one event for all others."""
    result = []
    for t, s in zip(teacher.double().tolist(), student.double().tolist(), strict=True):
        p = [math.exp(x) for x in t]
        q = [math.exp(x) for x in s]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        top = sorted(range(len(p)), key=lambda token: -p[token])[:k]
        found = [(p[token], q[token]) for token in top]
        others = [token for token in range(len(p)) if token not in top]
        result.append([*found, (sum(p[token] for token in others), sum(q[token] for token in others))])
    return result


def slow_kl(teacher: torch.Tensor, student: torch.Tensor, k: int) -> list[float]:
    rows = events(teacher, student, k)
    return [sum(a * math.log(a / b) if b else math.inf for a, b in row if a > 0) for row in rows]


def slow_tv(teacher: torch.Tensor, student: torch.Tensor, k: int) -> list[float]:
    return [sum(max(a - b, 0) for a, b in row) for row in events(teacher, student, k)]


PAIRS = [(answer_kl, slow_kl), (answer_tv, slow_tv)]


@pytest.mark.parametrize("k", [1, 4, 29, 30, 99])
@pytest.mark.parametrize(("quick", "slow"), PAIRS)
def test_each_is_that_of_a_slow_loop(quick: Any, slow: Any, k: int) -> None:
    teacher, student = random_logits(0), random_logits(1)
    got = quick(student, *kept_part(teacher, k))
    assert got.tolist() == pytest.approx(slow(teacher, student, k), rel=1e-5)
    assert quick(teacher, *kept_part(teacher, k)).abs().max() < 1e-6
    assert quick(teacher[:0], *kept_part(teacher[:0], k)).shape == (0,)


def test_the_distance_is_at_most_1_where_the_kl_is_large() -> None:
    teacher = random_logits(2)
    other = torch.zeros_like(teacher).scatter(1, teacher.argmin(1, keepdim=True), 60.0)
    assert bool((answer_kl(other, *kept_part(teacher, 10)) > 40).all())
    far = answer_tv(other, *kept_part(teacher, 10))
    assert bool(((far > 0.9) & (far <= 1)).all())


def test_what_is_kept_bounds_the_whole_kl_from_below_and_reaches_it() -> None:
    teacher, student = random_logits(2), random_logits(3)
    logs = teacher.log_softmax(-1)
    whole = float((logs.exp() * (logs - student.log_softmax(-1))).sum())
    losses = [float(answer_kl(student, *kept_part(teacher, k)).sum()) for k in (1, 3, 10, 30)]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(whole, rel=1e-5)


def test_the_gradient_is_the_difference_of_probabilities_if_all_tokens_are_kept() -> None:
    teacher, student = random_logits(4), random_logits(5).requires_grad_()
    answer_kl(student, *kept_part(teacher, 30)).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.softmax(-1) - teacher.softmax(-1)).detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("quick", [answer_kl, answer_tv])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_no_number_is_not_hidden(quick: Any, bad: float) -> None:
    """It is among the tokens that count as one event; a sum that left it out would look finite."""
    student = random_logits(1)
    kept = kept_part(random_logits(0), 4)
    other = next(token for token in range(30) if token not in kept[0][0].tolist())
    student[0, other] = bad
    got = quick(student, *kept)
    assert math.isnan(got[0])
    assert bool(got[1:].isfinite().all())


@pytest.mark.parametrize(("quick", "slow"), PAIRS)
def test_tokens_that_cannot_be_written_give_no_nan(quick: Any, slow: Any) -> None:
    teacher, student = random_logits(6), random_logits(7)
    teacher[:, 20:] = student[:, 20:] = -torch.inf  # tokens that a pack has no rows for
    student.requires_grad_()
    for k in (3, 20, 25):
        student.grad = None
        loss = quick(student, *kept_part(teacher, k))
        assert loss.tolist() == pytest.approx(slow(teacher[:, :20], student[:, :20], min(k, 20)), rel=1e-4, abs=1e-6)
        loss.sum().backward()
        assert student.grad is not None
        assert bool(student.grad.isfinite().all())


def test_what_is_impossible_for_one_of_the_two() -> None:
    teacher = random_logits(6)
    ruled_out = random_logits(7)
    ruled_out[:, int(teacher[0].argmax())] = -torch.inf
    assert float(answer_kl(ruled_out, *kept_part(teacher, 3))[0]) == math.inf
    # A teacher that is sure of one token: the remainder has the probability 0.
    sure = torch.full((1, 30), -torch.inf)
    sure[0, 4] = 0.0
    got = answer_kl(random_logits(8, n=1), *kept_part(sure, 1))
    assert float(got) == pytest.approx(-float(random_logits(8, n=1).log_softmax(-1)[0, 4]), rel=1e-5)
