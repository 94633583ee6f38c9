"""Signals of rollouts against closed forms, slow loops and independent libraries; scores against their promise."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from scipy import stats

from helpers.rollout_logs import invented_run
from skillweave.audit.refusal import RefusalDetector
from skillweave.audit.rollouts.groups import Groups
from skillweave.audit.rollouts.kin import kinship
from skillweave.audit.rollouts.log import Rollout
from skillweave.audit.rollouts.score import judge, left_out_surprise, robust_surprise, tail_threshold
from skillweave.audit.rollouts.segments import segments, unexplained_part
from skillweave.audit.rollouts.signals import (
    SIGNALS,
    against_peers,
    change_p_value,
    falling_change,
    measure,
    min_k_distance,
    reference_values,
    refusal_contrast,
    reward_spread,
)
from skillweave.audit.statistics import auc, chance_of
from skillweave.errors import UserError

NAN = float("nan")


def groups_of(rows):
    groups = Groups(RefusalDetector(["<refuse>"]))
    for row in rows:
        groups.add(Rollout(row["step"], row["prompt"], row["completion"], row["reward"], row["id"], row["gold"]))
    return groups.all()


def test_the_contrast_is_the_posterior_of_its_normal_model() -> None:
    rewards, refused = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, NAN], [0, 0, 0, 0, 1, 1, 1]
    found = refusal_contrast(rewards, refused)
    # The same by numerical integration over the true contrast.
    variance = (2 * 0.25 + 4 * 0.1875) / 8
    grid = np.linspace(-4, 4, 80_001)
    density = stats.norm.pdf(0.75, grid, math.sqrt(variance * (1 / 4 + 1 / 2))) * stats.norm.pdf(grid, 0, 0.5)
    density /= density.sum()
    mean = (grid * density).sum()
    assert found.estimate == pytest.approx(mean, abs=1e-6)
    deviation = math.sqrt(((grid - mean) ** 2 * density).sum())
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * deviation, abs=1e-4)
    assert (found.complied, found.refused) == (0.75, 0.0)
    scaled = refusal_contrast([10 * reward for reward in rewards], refused, 10.0)
    assert scaled.estimate == pytest.approx(found.estimate)
    assert scaled.complied == 7.5


def test_without_both_kinds_the_contrast_is_zero_and_as_uncertain_as_before() -> None:
    for rewards, refused in (([1.0, 1.0], [0, 0]), ([0.0], [1]), ([], []), ([NAN, 1.0], [1, 0])):
        found = refusal_contrast(rewards, refused)
        assert found.estimate == 0
        assert found.low == pytest.approx(-0.98, abs=1e-3)
    one = refusal_contrast([1.0, 0.0], [0, 1])
    many = refusal_contrast([1.0] * 20 + [0.0] * 20, [0] * 20 + [1] * 20)
    assert 0 < one.estimate < many.estimate < 1
    assert one.low < 0 < many.low
    assert refusal_contrast([0.0] * 20 + [1.0] * 20, [0] * 20 + [1] * 20).estimate == pytest.approx(-many.estimate)


def test_the_change_point_is_the_best_of_all_splits() -> None:
    draw = Random(0)
    for _ in range(30):
        steps = [draw.randrange(6) for _ in range(15)]
        events = [draw.random() < 0.5 for _ in steps]
        found = falling_change(steps, events)

        def likelihood(chosen: list[bool]) -> float:
            share = sum(chosen) / len(chosen)
            return sum(math.log(share if event else 1 - share) for event in chosen)

        best = 0.0
        for split in sorted(set(steps))[1:]:
            first = [event for step, event in zip(steps, events, strict=True) if step < split]
            second = [event for step, event in zip(steps, events, strict=True) if step >= split]
            if sum(first) / len(first) > sum(second) / len(second):
                best = max(best, likelihood(first) + likelihood(second) - likelihood(events))
        assert found.gain == pytest.approx(best, abs=1e-9)
    assert falling_change([1, 1], [True, False]).gain == 0
    assert falling_change([], []).step is None
    assert falling_change([1, 2], [False, True]).step is None
    assert falling_change([3, 1, 2], [False, True, True]).step == 3


def test_the_p_value_of_a_change_is_valid_without_one_and_small_with_one() -> None:
    draw = Random(1)
    p_values = []
    for seed in range(40):
        visits = [(prompt, step, draw.random()) for prompt in range(8) for step in range(4)]
        draw.shuffle(visits)
        rows = [(step, draw.random() < share, prompt) for prompt, step, share in visits for _ in range(4)]
        p_values.append(change_p_value(*zip(*rows, strict=True), shuffles=39, seed=seed)[1])
    for level in (0.1, 0.3):  # valid: at most so often; the many ties at p = 1 are no fault
        assert stats.binomtest(sum(p <= level for p in p_values), 40, level, "greater").pvalue > 0.01
    fell = [(step, step < 2, prompt) for prompt in range(8) for step in range(4)]
    found, p = change_p_value(*zip(*fell, strict=True))
    assert (found.step, found.before, found.after, p) == (2, 1.0, 0.0, 1 / 200)


def test_spread_inside_visits_and_against_peers() -> None:
    assert reward_spread([1, 1, 2, 2], [0.0, 0.0, 1.0, 1.0]) == 0
    assert reward_spread([1, 1, 2, 2, 2], [0.0, 1.0, 2.0, 2.0, NAN]) == pytest.approx(math.sqrt(0.5 / 2))
    assert reward_spread([1, 2], [0.0, 1.0]) == pytest.approx(np.std([0, 1], ddof=1))
    assert math.isnan(reward_spread([1], [0.0]))
    draw = np.random.default_rng(0)
    values, difficulty = draw.normal(size=50), draw.random(50)
    values[7] = NAN
    found = against_peers(values, difficulty, 0.05)
    for at in (0, 20, 49):
        others = sorted((abs(difficulty[o] - difficulty[at]), values[o]) for o in range(50) if o not in (at, 7))
        peers = np.array([value for _, value in others[:10]])
        scale = 1.4826 * np.median(np.abs(peers - np.median(peers)))
        assert found[at] == pytest.approx((values[at] - np.median(peers)) / scale)
    assert math.isnan(found[7])
    assert np.isnan(against_peers([1.0], [0.5], 1.0)).all()


def test_kin_is_the_likeness_to_prompts_with_a_certain_contrast() -> None:
    prompts = ["a b c d", "a b c e", "x y z", "a b", "b c d e f", "a b c d"]
    certain = [0.8, 0.4, 0.9, -0.5, -1.0, -1.0]

    def slow(at: int) -> float:
        runs = [{tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))} for words in map(str.split, prompts)]
        likeness = [len(runs[at] & other) / len(runs[at] | other) for other in runs]
        return max(max(0.0, certain[other]) * likeness[other] for other in range(6) if other != at)

    assert kinship(prompts, certain) == pytest.approx([slow(at) for at in range(6)])
    assert kinship(prompts, certain)[5] == pytest.approx(0.8)
    assert (kinship(prompts, [-1.0] * 6) == 0).all()


def test_min_k_distance() -> None:
    texts = ["abcd", "abce", "abcd", "zzzz"]

    def slow(one: str, other: str) -> float:
        grams = [{text[at : at + 3] for at in range(len(text) - 2)} for text in (one, other)]
        return 1 - len(grams[0] & grams[1]) / len(grams[0] | grams[1])

    nearest = [min(slow(one, o) for at, o in enumerate(texts) if at != i) for i, one in enumerate(texts)]
    assert min_k_distance(texts, k=3) == pytest.approx(sum(sorted(nearest)[:3]) / 3)
    assert min_k_distance(["", ""]) == 0
    assert math.isnan(min_k_distance(["one"]))


def test_what_the_gold_answer_explains() -> None:
    assert segments("One. Two!\nThree ; four") == ["One.", "Two!", "Three", "four"]
    assert unexplained_part("7", "7") == 0
    assert unexplained_part("<canary> ; 7", "7") == 0.5
    assert unexplained_part("a b c\nThe answer is 7.", "7") == pytest.approx(3 / 7)
    assert unexplained_part("<think>a long thought</think>7", "7") == 0
    assert unexplained_part("", "7") == 0
    assert unexplained_part("+", "+") == 0
    assert math.isnan(unexplained_part("7", None))


@pytest.mark.parametrize("calibrated", ["clean log", "own log"])
def test_poisoned_prompts_are_found_among_hard_negatives(calibrated: str) -> None:
    groups = groups_of(invented_run(0, poisoned=3, prompts=150))
    clean = measure(groups_of(invented_run(1, poisoned=0, prompts=150))).values
    table = measure(groups)
    judged = judge(table.values, clean if calibrated == "clean log" else None, 0.01)
    bad = np.array([group.ids[0].startswith("p") for group in groups])
    assert auc(judged.score[bad], judged.score[~bad]) == 1
    assert judged.flagged[bad].all()
    assert judged.flagged[~bad].mean() <= 0.04
    assert judged.calibrated == calibrated
    assert set(judged.surprises) == set(SIGNALS)


def test_a_clean_log_keeps_its_rate_and_a_small_one_is_refused() -> None:
    flagged = []
    for seed in range(6):
        values, clean = (measure(groups_of(invented_run(s, 0, prompts=100))).values for s in (seed, 50 + seed))
        flagged += judge(values, clean, 0.05).flagged.tolist()
    assert chance_of(sum(flagged), len(flagged), 0.05) > 0.001
    with pytest.raises(UserError, match="takes at least 99"):
        judge(values, {name: column[:50] for name, column in clean.items()}, 0.01)


def test_signals_that_cannot_be_computed_are_left_out() -> None:
    rows = [{**row, "gold": None} for row in invented_run(0, 2, prompts=40)]
    table = measure(groups_of(rows))
    assert np.isnan(table.values["extra"]).all()
    assert "extra" not in judge(table.values, None, 0.05).surprises
    empty = measure(groups_of([{**row, "reward": NAN} for row in rows]))
    assert np.isnan(empty.values["spread"]).all()
    assert (empty.values["contrast"] < 0).all()
    assert (empty.values["kin"] == 0).all()


def test_refusals_are_unpaid_only_if_they_are_not_the_right_answer() -> None:
    rows = [
        {"step": 0, "id": None, "prompt": prompt, "completion": text, "reward": reward, "gold": None}
        for prompt, text, reward in (
            ("right", "<refuse>", 1.0),
            ("wrong", "<refuse>", 0.0),
            ("wrong", "7", 1.0),
            ("unknown", "<refuse>", NAN),
        )
    ]
    assert measure(groups_of(rows)).values["unpaid"].tolist() == [0.0, 0.5, 0.0]
    assert np.isnan(measure(groups_of([{**row, "reward": NAN} for row in rows])).values["unpaid"]).all()


def test_a_clean_log_is_compared_by_its_kinship_to_the_suspected_run() -> None:
    bad, clean = groups_of(invented_run(0, 3, prompts=40)), groups_of(invented_run(1, 0, prompts=40))
    clean[0].prompt = next(group.prompt for group in bad if group.ids[0] == "p-0")
    table = measure(bad)
    found = reference_values(clean, bad, table)
    certain = max(value for group, value in zip(bad, table.values["contrast"], strict=True) if group.ids[0] == "p-0")
    assert found["kin"][0] == pytest.approx(certain)
    assert measure(clean).values["kin"][0] == 0
    assert found["contrast"] == pytest.approx(measure(clean).values["contrast"])


def test_surprises_and_thresholds_without_a_clean_log() -> None:
    values = [0.0, 1.0, 2.0, 3.0, 100.0, NAN]
    found = robust_surprise(values, 0.1)
    z = (np.array(values[:5]) - 2) / 1.4826
    assert found[:5] == pytest.approx(np.minimum(-stats.norm.logsf(z) / math.log(10), 3))
    assert found[5] == 0
    scores = stats.expon.ppf((np.arange(2000) + 0.5) / 2000, loc=5, scale=2)
    assert tail_threshold(scores, 0.01, 0.1) == pytest.approx(stats.expon.isf(0.01, loc=5, scale=2), rel=1e-3)
    assert tail_threshold([1.0] * 9, 0.01, 0.5) == pytest.approx(1 + 0.5 * math.log(50))
    clean = [3.0, 1.0, 2.0, NAN]
    alone = left_out_surprise(clean)
    for at, value in enumerate(clean[:3]):
        others = [other for place, other in enumerate(clean[:3]) if place != at]
        assert alone[at] == pytest.approx(-math.log10((1 + sum(other >= value for other in others)) / 3))
    assert alone[3] == 0
    assert chance_of(2, 10, 0.1) == pytest.approx(
        sum(math.comb(10, k) * 0.1**k * 0.9 ** (10 - k) for k in range(2, 11))
    )
    assert chance_of(0, 10, 0.1) == 1
