"""CKU's judge against explicit searches, pair loops, scipy and figures worked by hand."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from skillweave.methods.cku.knowledge.metrics import (
    exact_memorisation,
    extraction_strength,
    forget_quality,
    membership_auc,
    min_k,
    relearning_gap,
    relearning_robustness,
    robustness,
    rounding_gap,
    rounding_robustness,
    truth_ratio,
)

NAN = math.nan


def bools(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


# -- extraction strength and exact memorisation ------------------------------------------------------------------------


def greedy_strength(answer, first_choice) -> float:
    """Give the model ever longer prefixes, let it go on greedily from each, and see when the rest comes back."""
    for k in range(len(answer) + 1):
        text = list(answer[:k])
        while len(text) < len(answer):
            text.append(first_choice(text))
        if text == list(answer):
            return 1 - k / len(answer)
    raise AssertionError("the whole answer is a prefix of itself")


def test_extraction_strength_against_a_greedy_search_over_prefixes():
    """Models whose first choice hangs on all that stands before, so that one wrong word derails what follows."""
    found = set()
    for seed in range(300):
        drawn = random.Random(seed)
        answer = [drawn.randrange(3) for _ in range(drawn.randint(1, 7))]
        choices: dict[tuple[int, ...], int] = {}

        def first_choice(text, choices=choices, drawn=drawn) -> int:
            return choices.setdefault(tuple(text), drawn.choice([0, 1, 2]))

        top = bools([[first_choice(answer[:at]) == token for at, token in enumerate(answer)]])
        expected = greedy_strength(answer, first_choice)
        assert extraction_strength(top, torch.ones_like(top)).item() == pytest.approx(expected)
        found.add(expected)
    assert {0.0, 1.0} < found
    assert len(found) > 5


def test_extraction_strength_by_hand():
    top = bools([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1]])
    strength = extraction_strength(top, torch.ones_like(top))
    assert strength.tolist() == [1.0, 0.75, 0.0, 0.0, 0.25, 0.25]
    assert exact_memorisation(top, torch.ones_like(top)).tolist() == [1.0, 0.75, 0.75, 0.0, 0.5, 0.75]


def test_extraction_strength_is_never_above_exact_memorisation():
    top = bools(list(itertools.product([0, 1], repeat=6)))
    mask = torch.ones_like(top)
    strength, memorised = extraction_strength(top, mask), exact_memorisation(top, mask)
    assert (strength <= memorised).all()
    assert ((strength == 1) == (memorised == 1)).all()
    assert strength.dtype == memorised.dtype == torch.float32


def test_an_answer_of_one_token_is_all_or_nothing():
    top = bools([[1], [0]])
    assert extraction_strength(top, torch.ones_like(top)).tolist() == [1.0, 0.0]
    assert exact_memorisation(top, torch.ones_like(top)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("measure", [extraction_strength, exact_memorisation])
@pytest.mark.parametrize("under", [False, True])
def test_prompt_and_padding_count_nowhere(measure, under):
    answers = [[1, 0, 1, 1], [0, 1], [1, 1, 0]]
    alone = [measure(bools([answer]), torch.ones(1, len(answer), dtype=torch.bool)).item() for answer in answers]
    top, mask = torch.full((3, 9), under), torch.zeros(3, 9, dtype=torch.bool)
    for row, answer in enumerate(answers):
        top[row, 2 : 2 + len(answer)] = bools(answer)
        mask[row, 2 : 2 + len(answer)] = True
    assert measure(top, mask).tolist() == alone


def test_no_rows_no_figures():
    none = torch.zeros(0, 3, dtype=torch.bool)
    assert extraction_strength(none, none).shape == exact_memorisation(none, none).shape == (0,)
    assert min_k(torch.zeros(0, 3), none).shape == (0,)


# -- truth ratio -------------------------------------------------------------------------------------------------------


def test_truth_ratio_against_a_slow_loop_over_probabilities():
    generator = torch.Generator().manual_seed(0)
    right, wrong = (-3 * torch.rand(*shape, generator=generator) for shape in ((6,), (6, 4)))
    mask = torch.rand(6, 4, generator=generator) < 0.6
    mask[:, 0] = True
    mask[5] = bools([0, 0, 1, 0])
    ratios = truth_ratio(right, wrong, mask)
    assert ratios.dtype == torch.float64
    for row in range(6):
        kept = [math.exp(wrong[row, at].item()) for at in range(4) if mask[row, at]]
        assert ratios[row].item() == pytest.approx(sum(kept) / len(kept) / math.exp(right[row].item()), rel=1e-12)


def test_truth_ratio_from_probabilities_of_whole_answers():
    """TOFU's formula as it is written, answers of different lengths: P(a|q)^(1/|a|)."""
    right, wrong = (0.2, 4), [(0.5, 1), (0.01, 2), (0.027, 3)]
    expected = (0.5 + 0.1 + 0.3) / 3 / 0.2**0.25
    per_token = [math.log(probability) / length for probability, length in wrong]
    ratio = truth_ratio(torch.tensor([math.log(right[0]) / right[1]]), torch.tensor([per_token]))
    assert ratio.item() == pytest.approx(expected, rel=1e-6)


def test_truth_ratio_is_one_where_all_are_alike_and_none_where_only_the_right_one_is_likely():
    alike = torch.full((3,), -1.25)
    assert truth_ratio(alike, alike[:, None].expand(3, 5)).tolist() == pytest.approx([1.0] * 3, rel=1e-12)
    assert truth_ratio(alike, alike[:, None]).tolist() == [1.0] * 3
    assert truth_ratio(torch.tensor([-0.01]), torch.tensor([[-30.0, -40.0]])).item() < 1e-12


def test_the_truth_ratio_of_a_ruined_model_stays_finite():
    ratio = truth_ratio(torch.tensor([-300.0]), torch.tensor([[-1.0, -1.0]]))
    assert ratio.item() == pytest.approx(math.exp(299), rel=1e-9)


def test_masked_wrong_answers_count_nowhere_and_a_nan_shows():
    right, wrong = (
        torch.tensor([-1.0, -1.0, NAN, -1.0]),
        torch.tensor([[-2.0, NAN], [-2.0, NAN], [-2.0, -2.0], [-2, 9]]),
    )
    ratios = truth_ratio(right, wrong, bools([[1, 0], [1, 1], [1, 1], [1, 0]]))
    assert ratios.isnan().tolist() == [False, True, True, False]
    assert ratios[[0, 3]].tolist() == pytest.approx([math.exp(-1)] * 2)


# -- forget quality ----------------------------------------------------------------------------------------------------


def smirnov(ours, theirs) -> tuple[float, float]:
    """The statistic, and its exact p-value: the share of all ways to split the pooled values that lie as far apart."""

    def apart(one, other) -> float:
        return max(abs(np.mean([v <= at for v in one]) - np.mean([v <= at for v in other])) for at in [*one, *other])

    pooled = [*ours, *theirs]
    statistic, splits = apart(ours, theirs), []
    for chosen in itertools.combinations(range(len(pooled)), len(ours)):
        one = [pooled[at] for at in chosen]
        other = [pooled[at] for at in range(len(pooled)) if at not in chosen]
        splits.append(apart(one, other) >= statistic - 1e-12)
    return statistic, float(np.mean(splits))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([0.1, 0.2, 0.3, 0.4], [1.1, 1.2, 1.3, 1.4]), ([0.1, 0.5, 0.9, 1.3], [0.2, 0.4, 1.0]), ([0.7], [0.3, 0.8])],
)
def test_forget_quality_against_every_split_of_the_pooled_values(ours, theirs):
    _, expected = smirnov(ours, theirs)
    assert forget_quality(ours, theirs) == pytest.approx(expected, abs=1e-9)
    assert forget_quality(torch.tensor(ours), torch.tensor(theirs)) == pytest.approx(expected, abs=1e-9)


def test_forget_quality_is_scipys_and_hangs_on_ranks_alone():
    generator = np.random.default_rng(0)
    ours, theirs = generator.lognormal(0.3, 1, 60), generator.lognormal(0, 1, 50)
    assert forget_quality(ours, theirs) == ks_2samp(ours, theirs).pvalue
    assert forget_quality(theirs, ours) == pytest.approx(forget_quality(ours, theirs))
    # TOFU's own code has the ratio upside down.
    assert forget_quality(1 / ours, 1 / theirs) == pytest.approx(forget_quality(ours, theirs))


def test_forget_quality_is_one_of_the_same_values_and_next_to_none_of_a_model_that_knows():
    ratios = torch.linspace(0.5, 1.5, 40)
    assert forget_quality(ratios, ratios) == 1.0
    assert forget_quality([0.7], [0.7]) == 1.0
    assert forget_quality(ratios / 10, ratios) < 1e-15
    assert forget_quality([*ratios.tolist()[:-1], math.inf], ratios) > 0.99


# -- membership --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.2, 0.29, 0.5, 1.0])
def test_min_k_against_a_slow_loop(share):
    lengths = [1, 4, 5, 9, 100]
    log_probs = -torch.rand(5, 102, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = (torch.arange(102) >= 2) & (torch.arange(102) < 2 + torch.tensor(lengths)[:, None])
    values = min_k(log_probs, mask, share)
    for row, length in enumerate(lengths):
        count = max(1, int(round(share * 100) * length // 100))
        lowest = sorted(log_probs[row].tolist()[2 : 2 + length])[:count]
        assert values[row].item() == pytest.approx(sum(lowest) / count, rel=1e-12)


def test_min_k_of_all_tokens_is_the_mean_and_of_the_least_share_the_minimum():
    log_probs = torch.tensor([[-1.0, -4.0, -2.0, -5.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert min_k(log_probs, mask, 1.0).item() == -3.0
    assert min_k(log_probs, mask, 1e-9).item() == -5.0
    assert min_k(log_probs, mask, 0.5).item() == -4.5
    equal = torch.full((1, 7), -0.5)
    assert min_k(equal, torch.ones(1, 7, dtype=torch.bool)).item() == -0.5


@pytest.mark.parametrize("under", [NAN, -math.inf, math.inf])
def test_min_k_passes_over_padding_and_shows_a_nan(under):
    mask = bools([[1, 1, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    log_probs = torch.where(mask, torch.tensor([-1.0, -2.0, -3.0, -0.5, -0.25]), under)
    assert min_k(log_probs, mask, 0.7).tolist() == pytest.approx([-2.5, -2.0, -2.0])
    log_probs[0, 0] = NAN
    assert min_k(log_probs, mask, 0.2).isnan().tolist() == [True, False, False]


def test_membership_auc_against_the_pair_loop():
    generator = random.Random(0)
    for _ in range(40):
        # Few values, so that many tie.
        members, strangers = ([generator.randrange(6) / 2 for _ in range(generator.randint(1, 15))] for _ in range(2))
        pairs = [(one > other) + 0.5 * (one == other) for one in members for other in strangers]
        assert membership_auc(members, strangers) == pytest.approx(sum(pairs) / len(pairs))
        assert membership_auc(members, strangers) + membership_auc(strangers, members) == pytest.approx(1)
        assert membership_auc(torch.tensor(members), strangers) == membership_auc(members, strangers)


def test_membership_auc_at_its_ends():
    assert membership_auc([2.0, 3.0], [0.0, 1.0, -math.inf]) == 1.0
    assert membership_auc([0.0], [1.0]) == 0.0
    assert membership_auc([1.0, 1.0], [1.0]) == 0.5


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [relearning_gap, rounding_gap])
def test_the_gap_is_the_share_of_the_loss_that_came_back(gap):
    assert gap(0.9, 0.1, 0.1) == 0.0
    assert gap(0.9, 0.1, 0.9) == 1.0
    assert gap(0.75, 0.25, 0.5) == 0.5
    assert gap(0.75, 0.25, 1.0) == 1.5
    assert gap(0.75, 0.25, 0.0) == -0.5
    assert gap(0.6, 0.6, 0.9) is None
    assert gap(0.2, 0.6, 0.9) is None
    assert all(math.isnan(gap(*[NAN if at == broken else at / 4 for at in (3, 1, 2)])) for broken in (1, 2, 3))


def test_relearning_robustness_is_one_where_relearning_is_no_faster_than_learning():
    assert relearning_robustness(retain_gain=0.2, unlearned_gain=0.8) == 0.25
    assert relearning_robustness(retain_gain=0.5, unlearned_gain=0.5) == 1.0
    assert relearning_robustness(retain_gain=0.5, unlearned_gain=0.1) == 1.0
    assert relearning_robustness(retain_gain=0.5, unlearned_gain=0.0) == 1.0
    assert relearning_robustness(retain_gain=0.0, unlearned_gain=-0.1) == 1.0
    assert relearning_robustness(retain_gain=0.0, unlearned_gain=0.3) == 0.0
    assert relearning_robustness(retain_gain=-0.1, unlearned_gain=0.3) == 0.0
    assert math.isnan(relearning_robustness(retain_gain=NAN, unlearned_gain=0.3))
    assert math.isnan(relearning_robustness(retain_gain=0.3, unlearned_gain=NAN))


def test_rounding_robustness_falls_with_what_rounding_brings_back():
    # Published: 21% before, 83% after.
    assert rounding_robustness(0.21, 0.83) == pytest.approx(0.21 / 0.83)
    assert rounding_robustness(0.4, 0.4) == 1.0
    assert rounding_robustness(0.4, 0.1) == 1.0
    assert rounding_robustness(0.4, 0.0) == 1.0
    assert rounding_robustness(0.0, 0.0) == 1.0
    assert rounding_robustness(0.0, 0.1) == 0.0
    assert math.isnan(rounding_robustness(NAN, 0.5))
    assert math.isnan(rounding_robustness(0.5, NAN))
    with pytest.raises(ValueError, match=r"at least 0, not -0\.1, 0\.2"):
        rounding_robustness(-0.1, 0.2)


def test_robustness_is_the_harmonic_mean_and_as_bad_as_the_worse_allows():
    assert robustness(0.5, 1.0) == pytest.approx(2 / (1 / 0.5 + 1 / 1.0))
    assert robustness(0.3, 0.3) == pytest.approx(0.3)
    assert robustness(1.0, 1.0) == 1.0
    assert robustness(0.0, 1.0) == robustness(1.0, 0.0) == 0.0
    assert math.isnan(robustness(NAN, 0.5))


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: extraction_strength(bools([[1, 1], [1, 1]]), bools([[1, 0], [0, 0]])), "row 1 has no token"),
        (lambda: exact_memorisation(bools([[1, 1]]), bools([[0, 0]])), "row 0 has no token"),
        (lambda: min_k(torch.zeros(1, 2), bools([[0, 0]])), "row 0 has no token"),
        (lambda: extraction_strength(torch.zeros(1, 2), bools([[1, 1]])), "top must be bool"),
        (lambda: exact_memorisation(torch.zeros(1, 2), bools([[1, 1]])), "top must be bool"),
        (lambda: extraction_strength(bools([[1, 1]]), torch.ones(1, 2)), "mask must be bool"),
        (lambda: extraction_strength(bools([1, 1]), bools([1, 1])), r"both must be \(B, T\)"),
        (lambda: min_k(torch.zeros(1, 2), bools([[1]])), r"both must be \(B, T\)"),
        (lambda: min_k(torch.zeros(1, 2), bools([[1, 1]]), 0.0), "share must be above 0"),
        (lambda: min_k(torch.zeros(1, 2), bools([[1, 1]]), 1.1), "at most 1, not 1.1"),
        (lambda: truth_ratio(torch.zeros(2), torch.zeros(3, 2)), "right must be"),
        (lambda: truth_ratio(torch.zeros(2), torch.zeros(2)), "right must be"),
        (lambda: truth_ratio(torch.zeros(2), torch.zeros(2, 2), bools([[1, 1]])), "right must be"),
        (lambda: truth_ratio(torch.zeros(2), torch.zeros(2, 0)), "row 0 has no wrong answer"),
        (lambda: truth_ratio(torch.zeros(2), torch.zeros(2, 2), bools([[1, 0], [0, 0]])), "row 1 has no wrong answer"),
        (lambda: forget_quality([], [1.0]), "truth_ratios is empty"),
        (lambda: forget_quality([1.0], torch.zeros(0)), "reference is empty"),
        (lambda: forget_quality([1.0, NAN, NAN], [1.0]), "truth_ratios has 2 NaN among its 3 values"),
        (lambda: membership_auc([], [1.0]), "members is empty"),
        (lambda: membership_auc([1.0], []), "strangers is empty"),
        (lambda: membership_auc([1.0], [NAN]), "strangers has 1 NaN among its 1 values"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
