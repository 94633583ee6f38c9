"""The task and the rounds of self-play from a converged start, against slow references."""

from __future__ import annotations

import importlib
from collections import Counter
from random import Random

import pytest
import torch

worked = importlib.import_module("benchmarks.tpaw.worked")
rounds = importlib.import_module("benchmarks.tpaw.rounds")
show = importlib.import_module("benchmarks.tpaw.converged_show")


def test_every_worked_answer_is_right_and_forms_are_many() -> None:
    rng = Random(0)
    for numbers in worked.draw(rng, 20, set()):
        answers = [worked.worked(rng, numbers) for _ in range(50)]
        assert all(worked.right(numbers, answer) for answer in answers)
        assert len({tuple(answer) for answer in answers}) > 10
        assert not any(worked.right(numbers, worked.wrong(rng, numbers)) for _ in range(20))


def test_an_answer_with_any_other_token_is_right_only_if_it_is_another_right_form() -> None:
    numbers = (1, 2, 3, 4)
    good = [
        worked.FIRST + number if number >= 0 else worked.SIGNS[0] for number in (1, 2, 3, -1, 3, 3, 6, -1, 6, 4, 10)
    ]
    assert worked.right(numbers, [*good, worked.END])
    for at in range(len(good)):
        for token in range(worked.FIRST + worked.MODULUS):
            changed = [*good[:at], token, *good[at + 1 :], worked.END]
            assert worked.right(numbers, changed) == (token == good[at])
    assert not worked.right(numbers, good)  # without an end
    assert not worked.right((1, 2, 3, 5), [*good, worked.END])
    assert not worked.right(numbers, [])


def test_the_base_is_misled_as_often_as_it_says() -> None:
    habits, rng = worked.Misled({(2, 5): 11}, often=0.6, noise=0.0), Random(1)
    seen = Counter(habits(5, 2, rng) for _ in range(2000))
    assert set(seen) == {11, 7}
    assert seen[11] / 2000 == pytest.approx(0.6, abs=0.04)
    assert 10 < len(worked.Misled.draw(Random(2)).habits) < 45
    assert all(wrong != sum(pair) % 13 for pair, wrong in worked.Misled.draw(Random(2)).habits.items())


def test_log_probs_are_those_of_a_slow_loop_and_a_greedy_answer_is_the_likeliest_token_each_time() -> None:
    model, rng = worked.new_model(3), Random(3)
    numbers = worked.draw(rng, 3, set())
    answers = [worked.worked(rng, numbers[0]), [worked.FIRST, worked.END], worked.worked(rng, numbers[2])]
    fast = worked.log_probs(model, worked.prompts(numbers), worked.padded(answers))
    greedy = worked.answer(model, worked.prompts(numbers))
    for at, (asked, answer) in enumerate(zip(worked.prompts(numbers).tolist(), answers, strict=True)):
        total = 0.0
        for length, token in enumerate(answer):
            logits = model(torch.tensor([asked + answer[:length]])).logits[0, -1]
            total += logits.log_softmax(-1)[token].item()
        assert fast[at].item() == pytest.approx(total, abs=1e-4)
        for length, token in enumerate(greedy[at]):
            assert model(torch.tensor([asked + greedy[at][:length]])).logits[0, -1].argmax() == token


def test_pairs_with_and_without_labels() -> None:
    numbers = (1, 2, 3, 4)
    rng = Random(4)
    target, other, bad = worked.worked(rng, numbers), worked.worked(rng, numbers), worked.wrong(rng, numbers)
    assert other != target
    cut = bad[:-1]
    data = rounds.Data([numbers], [target], [], [])
    drawn = [[one] for one in (target, other, bad, cut)]
    play = rounds.pairs_of(data, drawn, labels=False, rng=rng)
    assert (play.at, play.targets, play.generated) == ([0, 0], [target, target], [other, bad])
    labelled = rounds.pairs_of(data, drawn, labels=True, rng=rng)
    assert labelled.generated == [bad]
    assert labelled.targets[0] in (target, other)
    assert rounds.pairs_of(data, [[bad]], labels=True, rng=rng).targets == [target]
    spoilt = rounds.Data([numbers], [bad], [], [])
    assert rounds.pairs_of(spoilt, [[worked.wrong(Random(9), numbers)]], labels=True, rng=rng).at == []


def test_a_schedule_that_is_longer_than_the_training_does_not_reach_zero() -> None:
    assert rounds.scale(0, 10, 1.0) == 1.0
    assert rounds.scale(9, 10, 1.0) < 0.05
    assert rounds.scale(9, 10, 3.0) > 0.75


def test_how_far_below_its_best_round_an_arm_is() -> None:
    rows = [{"seed": 0, "score": [0.5, 0.7, 0.6]}, {"seed": 1, "score": [0.5, 0.5, 0.5]}]
    assert show.below_its_best(rows) == pytest.approx([10, 0])
    assert show.paired(rows, rows[1:], show.points) == [0]
