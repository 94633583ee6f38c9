"""The anchors, against a slow choice in plain Python and in edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from skillweave.methods.e3tir.trace_tokens import (
    annealed_share,
    certain_positions,
    nearest_eligible,
    pick_anchors,
    split_branches,
)

NAN = math.nan


def slow_anchors(entropy: list[float], eligible: list[bool], k: int) -> list[int]:
    left = [at for at in range(len(entropy)) if eligible[at] and not math.isnan(entropy[at])]
    chosen: list[int] = []
    while left and len(chosen) < k:
        best = left[0]
        for at in left[1:]:
            if entropy[at] > entropy[best]:
                best = at
        left.remove(best)
        chosen.append(best)
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(20))
def test_anchors_against_a_slow_choice_with_many_ties_and_nans(seed):
    source = torch.Generator().manual_seed(seed)
    length = int(torch.randint(1, 60, (), generator=source))
    entropy = torch.randint(0, 6, (length,), generator=source).double() / 3
    entropy[torch.rand(length, generator=source) < 0.15] = NAN
    eligible = torch.rand(length, generator=source) < 0.6
    for k in (1, 3, 8, 100):
        assert pick_anchors(entropy, eligible, k) == slow_anchors(entropy.tolist(), eligible.tolist(), k)


def test_anchors_come_in_the_traces_order_not_in_entropys():
    entropy = torch.tensor([0.1, 3.0, 0.2, 5.0, 4.0])
    assert pick_anchors(entropy, torch.ones(5, dtype=torch.bool), 3) == [1, 3, 4]


def test_a_token_that_is_not_eligible_is_passed_over_however_uncertain():
    entropy, eligible = torch.tensor([9.0, 1.0, 8.0, 2.0]), torch.tensor([False, True, False, True])
    assert pick_anchors(entropy, eligible, 1) == [3]
    assert pick_anchors(entropy, eligible, 4) == [1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_entropies_the_earlier_is_taken_in_long_traces_too(dtype):
    entropy = torch.ones(4096, dtype=dtype)
    eligible = torch.ones(4096, dtype=torch.bool)
    eligible[:7] = False
    assert pick_anchors(entropy, eligible, 5) == [7, 8, 9, 10, 11]
    entropy[4000] = 2
    assert pick_anchors(entropy, eligible, 2) == [7, 4000]


def test_a_nan_is_never_an_anchor_even_if_nothing_else_is_left():
    eligible = torch.ones(3, dtype=torch.bool)
    assert pick_anchors(torch.tensor([NAN, 1.0, NAN]), eligible, 2) == [1]
    assert pick_anchors(torch.full((3,), NAN), eligible, 2) == []


def test_no_trace_no_eligible_token_or_k_zero_gives_no_anchor():
    assert pick_anchors(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 3) == []
    assert pick_anchors(torch.ones(4), torch.zeros(4, dtype=torch.bool), 3) == []
    assert pick_anchors(torch.ones(4), torch.ones(4, dtype=torch.bool), 0) == []
    assert pick_anchors(torch.ones(1), torch.ones(1, dtype=torch.bool), 3) == [0]


@pytest.mark.parametrize(
    ("entropy", "eligible"),
    [
        (torch.ones(4), torch.ones(3, dtype=torch.bool)),
        (torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)),
        (torch.ones(4), torch.ones(4)),
    ],
)
def test_entropies_and_eligibility_that_do_not_fit_are_refused(entropy, eligible):
    with pytest.raises(ValueError, match=r"must both be \(T,\)"):
        pick_anchors(entropy, eligible, 1)


def test_a_negative_number_of_anchors_or_branches_is_refused():
    with pytest.raises(ValueError, match="k must be 0 or more, not -1"):
        pick_anchors(torch.ones(4), torch.ones(4, dtype=torch.bool), -1)
    with pytest.raises(ValueError, match="m must be 0 or more, not -1"):
        split_branches(-1, [3])


@pytest.mark.parametrize(
    ("m", "anchors", "expected"),
    [
        (8, [2, 5, 9], [3, 3, 2]),
        (9, [2, 5, 9], [3, 3, 3]),
        (7, [2, 5, 9], [3, 2, 2]),
        (2, [2, 5, 9], [1, 1, 0]),
        (0, [2, 5, 9], [0, 0, 0]),
        (8, [4], [8]),
        (8, [], []),
    ],
)
def test_branches_are_spread_evenly_and_the_earliest_anchors_get_what_is_left(m, anchors, expected):
    assert split_branches(m, anchors) == expected


# -- prefixes of other methods ----------------------------------------------------------------------------------------


def test_an_annealed_prefix_falls_from_95_to_5_percent_by_a_cosine():
    shares = [annealed_share(batch, 5) for batch in range(5)]
    assert shares == pytest.approx([0.95, 0.5 + 0.45 * math.sqrt(0.5), 0.5, 0.5 - 0.45 * math.sqrt(0.5), 0.05])
    assert annealed_share(0, 1) == pytest.approx(0.95)
    for batch in (-1, 5):
        with pytest.raises(ValueError, match="batch must lie within 0 and 4"):
            annealed_share(batch, 5)


def test_the_nearest_eligible_position_is_the_earlier_of_two():
    eligible = torch.tensor([False, True, False, True, False, False, True, False, False, False])
    assert [nearest_eligible(eligible, share) for share in (0.0, 0.2, 0.3, 0.5, 1.0)] == [[1], [1], [3], [6], [6]]
    assert nearest_eligible(torch.zeros(4, dtype=torch.bool), 0.5) == []


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_certain_positions_are_what_a_slow_choice_leaves(seed, share):
    source = torch.Generator().manual_seed(seed)
    entropy = torch.randint(0, 4, (17,), generator=source).float()  # with many ties
    written = torch.rand(17, generator=source) < 0.6
    own = [at for at in range(17) if written[at]]
    kept = slow_anchors(entropy.tolist(), written.tolist(), math.ceil(share * len(own)))
    assert certain_positions(entropy, written, share) == [at for at in own if at not in kept]
    assert certain_positions(entropy[:0], written[:0], share) == []
