"""Who wins against whom: the wins as pure functions, and the evaluator's figures against a slow computation."""

from __future__ import annotations

import itertools
import math
from statistics import fmean

import pytest

from helpers.micro import log_prob
from skillweave.base import open_tokenizer
from skillweave.base.chat import answer_ids
from skillweave.methods.tpaw.player_evaluation import (
    PlayerEvaluator,
    first_answers,
    first_scores,
    wins_by_log_prob,
    wins_by_score,
)
from skillweave.methods.training.answers import Answered, read_samples


def test_a_tie_counts_half_on_each_side():
    assert wins_by_score([1.0, 0.5, 0.0, 0.2], [0.0, 0.5, 1.0, 0.1]) == (1 + 0.5 + 0 + 1) / 4
    own, other = [0.3, 0.9, 0.1], [0.3, 0.2, 0.8]
    assert wins_by_score(own, other) + wins_by_score(other, own) == pytest.approx(1)
    assert wins_by_score([math.nan], [0.0]) == 0


def test_a_win_by_likelihood_is_a_reward_margin_whatever_lam():
    target, answer = [-3.0, -5.0, -2.0], [-4.0, -2.0, -9.0]
    of_target, of_answer = [-4.0, -4.0, -2.0], [-4.0, -2.0, -9.0]
    assert wins_by_log_prob(target, answer, of_target, of_answer) == (1 + 0 + 0.5) / 3
    for lam in (0.1, 5.0):
        margins = [
            lam * (y - o_y) - lam * (g - o_g)
            for y, g, o_y, o_g in zip(target, answer, of_target, of_answer, strict=True)
        ]
        won = [(margin > 0) + 0.5 * (margin == 0) for margin in margins]
        assert wins_by_log_prob(target, answer, of_target, of_answer) == sum(won) / 3


def test_the_evaluator_reads_each_prompts_first_answer():
    rows = [
        Answered("a", "say 7", "777", ["1", "2"], [0.5, 1.0], [True, True]),
        Answered("b", "say 3", "333", ["3"], [0.25], [True]),
    ]
    assert first_scores(rows) == [0.5, 0.25]
    assert first_answers(rows) == [("say 7", "1"), ("say 3", "3")]


def test_the_evaluator_against_a_slow_one(base, whole):
    tokenizer, entries = open_tokenizer(base.path), whole.task.splits["calibration"][:10]
    number, rival = 2, 1
    models = {player: whole.player(base, player) for player in (0, rival, number)}
    told = whole.figures(f"held-out-{number}")

    def said(player: int, how: str) -> list[str]:
        return [row.answers[0] for row in read_samples(whole.out / f"held-out-{player}" / f"{how}.jsonl")]

    def likely(player: int, texts: list[str]) -> list[float]:
        return [log_prob(models[player], tokenizer, one.prompt, text) for one, text in zip(entries, texts, strict=True)]

    gold, drawn, of_rival = [entry.answer for entry in entries], said(number, "drawn"), said(rival, "greedy")
    assert told["log_prob"] == pytest.approx(fmean(likely(number, gold)), abs=1e-4)
    scores = {
        player: [whole.task.score(text, one) for text, one in zip(said(player, "greedy"), entries, strict=True)]
        for player in (rival, number)
    }
    assert told["score"] == fmean(scores[number])
    assert told["tokens"] == fmean(len(answer_ids(tokenizer, text)) for text in said(number, "greedy"))
    assert told["target_tokens"] == fmean(len(answer_ids(tokenizer, text)) for text in gold)
    ended = [row.ended[0] for row in read_samples(whole.out / f"held-out-{number}" / "drawn.jsonl")]
    assert 0 < sum(ended) < len(ended)
    here, there = (list(itertools.compress(likely(player, drawn), ended)) for player in (number, 0))
    assert told["kl_to_start"] == pytest.approx(fmean(a - b for a, b in zip(here, there, strict=True)), abs=1e-4)
    mine = [y - own for y, own in zip(likely(number, gold), likely(number, of_rival), strict=True)]
    theirs = [y - own for y, own in zip(likely(rival, gold), likely(rival, of_rival), strict=True)]
    # A rival's answer that was cut off has no end whose likelihood could be computed.
    whole_ones = [row.ended[0] for row in read_samples(whole.out / f"held-out-{rival}" / "greedy.jsonl")]
    assert any(whole_ones)
    asked = itertools.compress(zip(mine, theirs, gold, of_rival, strict=True), whole_ones)
    assert told["wins"]["1"]["log_prob"] == fmean(
        0.5 if text == answer else float(a > b) for a, b, text, answer in asked
    )
    assert told["wins"]["1"]["score"] == fmean(
        (a > b) + 0.5 * (a == b) for a, b in zip(scores[number], scores[rival], strict=True)
    )


def test_wins_ask_for_each_players_scores_once_however_many_prompts_there_are(monkeypatch):
    rows = [Answered(str(at), "say 7", "777", ["1"], [0.5], [True]) for at in range(40)]
    asked: list[tuple[int, str]] = []

    class Scores:
        def log_probs(self, number, name, answers):
            asked.append((number, name))
            return [0.0] * len(rows)

    evaluator = PlayerEvaluator.__new__(PlayerEvaluator)
    evaluator._team, evaluator._targets = Scores(), first_answers(rows)
    monkeypatch.setattr(evaluator, "_greedy", lambda number: rows, raising=False)
    assert evaluator._wins(2, 1) == {"score": 0.5, "log_prob": 0.5}
    assert sorted(asked) == [(player, name) for player in (1, 2) for name in ("held-out-greedy-1", "held-out-targets")]
