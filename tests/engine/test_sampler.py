"""The draws of a request: their distribution, and what they depend on."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from skillweave.engine.sampler import RowSampler, _at, nucleus

LOGITS = [0.9, 1.2, 2.0, 0.0, -0.5, -3.0, -math.inf]


def by_hand(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """The probabilities of the tokens, one after the other in double precision."""
    weights = [math.exp(logit / temperature) for logit in logits]
    probabilities = [weight / sum(weights) for weight in weights]
    kept, reached = [0.0] * len(logits), 0.0
    for index in sorted(range(len(logits)), key=lambda index: -probabilities[index]):
        if reached >= top_p and reached > 0:
            break
        kept[index] = probabilities[index]
        reached += probabilities[index]
    return [probability / sum(kept) for probability in kept]


def check(counts: list[int], probabilities: list[float]) -> None:
    """No impossible token was drawn, and the others as often as chi-square allows at one in a thousand."""
    possible = [index for index, probability in enumerate(probabilities) if probability > 0]
    assert sum(counts[index] for index in possible) == sum(counts)
    cells = [(probabilities[index] * sum(counts), counts[index]) for index in possible]
    rare = [cell for cell in cells if cell[0] < 5]  # chi-square does not hold for them, so they are counted together
    cells = [cell for cell in cells if cell[0] >= 5] + ([tuple(map(sum, zip(*rare, strict=True)))] if rare else [])
    expected, found = zip(*cells, strict=True)
    assert len(cells) == 1 or stats.chisquare(found, expected).pvalue > 1e-3


def drawn(
    logits: torch.Tensor, steps: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0
) -> list[int]:
    """The tokens that a request of the vocabulary of ``logits`` draws, one after another."""
    sampler = RowSampler(temperature=temperature, top_p=top_p, seed=seed, vocabulary=len(logits), device="cpu")
    return [sampler.draw(logits.clone()) for _ in range(steps)]


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.5, 1.0), (1.0, 0.8), (1.7, 0.55), (1, 0.3), (1.0, 0.0)]
)
def test_draws_follow_the_softmax_over_seeds_and_over_steps(temperature: float, top_p: float) -> None:
    probabilities = by_hand(LOGITS, temperature, top_p)
    logits, size = torch.tensor(LOGITS), len(LOGITS)
    over_seeds = [drawn(logits, 1, temperature=temperature, top_p=top_p, seed=seed)[0] for seed in range(3000)]
    check(torch.bincount(torch.tensor(over_seeds), minlength=size).tolist(), probabilities)
    over_steps = torch.tensor(drawn(logits, 3000, temperature=temperature, top_p=top_p, seed=5))
    check(torch.bincount(over_steps, minlength=size).tolist(), probabilities)
    # The next token does not depend on the one before: all pairs have the product of their probabilities.
    pairs = torch.bincount(over_steps[0::2] * size + over_steps[1::2], minlength=size**2).tolist()
    check(pairs, [one * other for one in probabilities for other in probabilities])


def test_a_larger_vocabulary_of_others_changes_no_draw_and_none_is_beyond_the_own_one() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([logits, torch.full((9,), 100.0)])
    for temperature in (0.0, 0.7, 2.0):
        samplers = [
            RowSampler(temperature=temperature, top_p=0.9, seed=3, vocabulary=50, device="cpu") for _ in range(2)
        ]
        assert [samplers[0].draw(logits) for _ in range(20)] == [samplers[1].draw(wide) for _ in range(20)]
    assert drawn(logits, 3, temperature=0.0) == [int(logits.argmax())] * 3


def test_seeds_of_any_size_are_taken() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(4))
    found = {seed: tuple(drawn(logits, 12, seed=seed)) for seed in (0, 1, -1, 2**63 + 7)}
    assert len(set(found.values())) == 4
    assert drawn(logits, 12, seed=2**64 + 1) == list(found[1])


def test_the_nucleus_of_equal_tokens_is_as_small_as_it_can_be() -> None:
    assert [len(nucleus(torch.full((4,), 0.25), top_p)) for top_p in (0.0, 0.5, 0.51, 1.0)] == [1, 2, 3, 4]


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_a_sorted_vocabulary(scale: float, top_p: float) -> None:
    logits = scale * torch.randn(50_000, generator=torch.Generator().manual_seed(5))
    probabilities = logits.softmax(dim=-1)
    order = probabilities.double().argsort(descending=True, stable=True)
    reached, slow = 0.0, []
    for token in order.tolist():
        if reached >= top_p and slow:
            break
        slow.append(token)
        reached += float(probabilities[token])
    assert nucleus(probabilities, top_p).tolist() == slow


def test_the_ends_of_the_uniform_numbers_give_tokens_that_are_possible() -> None:
    weights = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    ends = [_at(weights, torch.tensor(uniform, dtype=torch.float64)) for uniform in (0.0, 0.2499, 0.25, 1 - 2**-53)]
    assert ends == [1, 1, 3, 3]
    assert _at(torch.tensor([0.3]), torch.tensor(1 - 2**-53, dtype=torch.float64)) == 0


def test_a_tiny_temperature_takes_the_likeliest_token() -> None:
    assert drawn(torch.tensor([1e30, 2e30, -1e30]), 3, temperature=1e-30) == [1, 1, 1]
