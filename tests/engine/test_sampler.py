"""The draws of the rows of a batch: their distribution, and that no row depends on the others."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from skillweave.engine.sampler import RowSampler, RowSampling, in_nucleus

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


def drawn(rows: list[RowSampling], logits: torch.Tensor, steps: int = 1) -> torch.Tensor:
    """The tokens (rows, steps) that greedy decoding takes after the sampler."""
    sampler = RowSampler(rows, "cpu")
    return torch.stack([sampler(torch.empty(0), logits.clone()).argmax(-1) for _ in range(steps)], dim=1)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.5, 1.0), (1.0, 0.8), (1.7, 0.55), (1, 0.3), (1.0, 0.0)]
)
def test_draws_follow_the_softmax_over_seeds_and_over_steps(temperature: float, top_p: float) -> None:
    probabilities = by_hand(LOGITS, temperature, top_p)
    size = len(LOGITS)
    seeds = [RowSampling(temperature, top_p, seed, size) for seed in range(3000)]
    over_seeds = drawn(seeds, torch.tensor([LOGITS] * 3000))[:, 0]
    check(torch.bincount(over_seeds, minlength=size).tolist(), probabilities)
    over_steps = drawn([RowSampling(temperature, top_p, 5, size)], torch.tensor([LOGITS]), 3000)[0]
    check(torch.bincount(over_steps, minlength=size).tolist(), probabilities)
    # The next token does not depend on the one before: all pairs have the product of their probabilities.
    pairs = torch.bincount(over_steps[0::2] * size + over_steps[1::2], minlength=size**2).tolist()
    check(pairs, [one * other for one in probabilities for other in probabilities])


def test_a_row_draws_the_same_alone_and_beside_any_others() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    rows = [RowSampling(0.0 if row == 2 else 0.5 + row, 1.0 if row % 2 else 0.7, row % 3, 50) for row in range(6)]
    together = drawn(rows, logits, 20)
    for row in range(6):
        assert torch.equal(drawn([rows[row]], logits[row : row + 1], 20)[0], together[row])
    assert (together[2] == logits[2].argmax()).all()
    # Beside a row with more tokens the scores are wider, and minus infinity there.
    wide = torch.cat([logits, torch.full((6, 9), -torch.inf)], dim=1)
    assert torch.equal(drawn(rows, wide, 20), together)


def test_greedy_rows_keep_their_scores_to_the_bit() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(2))
    rows = [RowSampling(0.0, 0.5, 1, 9), RowSampling(1.0, 1.0, 1, 9), RowSampling(0.0, 1.0, 2, 9)]
    scores = RowSampler(rows, "cpu")(torch.empty(0), logits.clone())
    assert torch.equal(scores[[0, 2]], logits[[0, 2]])
    assert not torch.equal(scores[1], logits[1])


def test_a_row_without_probabilities_is_named_and_leaves_the_others_alone() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(3))
    rows = [RowSampling(1.0, 0.9, row, 9) for row in range(4)]
    alone = drawn(rows, logits, 1)[:, 0]
    broken = logits.clone()
    broken[1, 4], broken[2, 0] = torch.nan, torch.inf
    sampler = RowSampler(rows, "cpu")
    tokens = sampler(torch.empty(0), broken).argmax(-1)
    assert sampler.bad.keys() == {1, 2}
    assert math.isnan(sampler.bad[1])
    assert sampler.bad[2] == math.inf
    assert tokens[[0, 3]].tolist() == alone[[0, 3]].tolist()
    assert sampler(torch.empty(0), logits) is not None
    assert sampler.bad == {}


def test_seeds_of_any_size_are_taken() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(4))
    found = {
        seed: tuple(drawn([RowSampling(1.0, 1.0, seed, 40)], logits, 12)[0].tolist()) for seed in (0, 1, -1, 2**63 + 7)
    }
    assert len(set(found.values())) == 4
    assert drawn([RowSampling(1.0, 1.0, 2**64 + 1, 40)], logits, 12)[0].tolist() == list(found[1])


def test_the_nucleus_of_equal_tokens_is_as_small_as_it_can_be() -> None:
    kept = in_nucleus(torch.zeros(3, 4), torch.tensor([0.5, 0.51, 1.0])).isfinite().sum(-1)
    assert kept.tolist() == [2, 3, 4]


def test_a_nucleus_of_everything_is_everything() -> None:
    logits = 3 * torch.randn(2, 50_000, generator=torch.Generator().manual_seed(5))
    assert in_nucleus(logits, torch.tensor([1.0, 0.9])).isfinite().all(-1).tolist() == [True, False]
