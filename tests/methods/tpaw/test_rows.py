"""The rows of a round and the team that scores them, against a slow reading of what an unbroken run wrote down."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest

from helpers.micro import log_prob
from helpers.selfplay import LN2, settings
from skillweave.base import open_tokenizer
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.files.read import read_json
from skillweave.methods.tpaw.rows import RowMaker
from skillweave.methods.tpaw.team import Team
from skillweave.methods.training.answers import read_samples
from skillweave.methods.training.run import Run


@pytest.fixture
def again(base, whole):
    """The rows and the team of the finished run, whose scores lie on the disk."""
    state = Run.begin("tpaw", base, settings(), whole.task, whole.out)
    team = Team(state)
    return RowMaker(state, team), team


def test_each_answer_is_asked_once_of_each_player(whole):
    of_rounds = [asked for asked in whole.scored if asked[1].startswith("round-")]
    assert len(of_rounds) == len(set(of_rounds))
    # The same targets occur in every round that uses them, and are still scored only once.
    targets = Counter((player, ids) for player, name, ids in of_rounds if name.endswith("-targets"))
    assert set(targets.values()) == {1}
    # No player scores a round that it is never used with: round 1 is no longer used when player 2 joins.
    assert {(player, name) for player, name, _ in of_rounds if name.endswith("-generated")} == {
        (0, "round-1-generated"), (0, "round-2-generated"), (1, "round-1-generated"), (1, "round-2-generated"),
        (1, "round-3-generated"), (2, "round-2-generated"), (2, "round-3-generated"),
    }  # fmt: skip
    assert (2, "round-1-targets") not in {(player, name) for player, name, _ in of_rounds}
    held = [asked for asked in whole.scored if asked[1] == "held-out-targets"]
    assert Counter(player for player, _, _ in held) == {0: 10, 1: 10, 2: 10, 3: 10}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rows_are_the_remembered_rounds_each_pair_once_the_newest_first(base, whole, again, number):
    tokenizer = open_tokenizer(base.path)
    expected = []
    for each in [number, number - 1][: min(number, 2)]:
        for row in read_samples(whole.out / f"round-{each}" / "samples.jsonl"):
            lengths = [len(answer_ids(tokenizer, text)) for text in (row.gold, row.answers[0])]
            sane = row.ended[0] and row.answers[0].strip() and row.answers[0].strip() != row.gold
            pair = (row.prompt, row.gold, row.answers[0])
            if sane and max(lengths) <= 4 * min(lengths) and pair not in expected:
                expected.append(pair)
    assert len(expected) >= 16
    players = list(range(number - 1, max(-1, number - 3), -1))
    rows = again[0].of_round(number, players)
    assert [(row.prompt, row.answers) for row in rows] == [
        (prompt_ids(tokenizer, prompt), [answer_ids(tokenizer, text) for text in texts]) for prompt, *texts in expected
    ]
    assert rows == whole.trained_on[f"round-{number}"]
    # The log-probabilities of both answers under each player, the newest first, computed token by token.
    for at, player in enumerate(players):
        model = whole.player(base, player)
        for pair, row in list(zip(expected, rows, strict=True))[::5]:
            own = [log_prob(model, tokenizer, pair[0], text) for text in pair[1:]]
            assert row.player_log_probs[at] == pytest.approx(own, abs=1e-4)


def test_the_counts_of_a_round_are_those_of_its_own_generations(whole, again):
    for number in (1, 2, 3):
        told = whole.figures(f"round-{number}")
        samples = read_samples(whole.out / f"round-{number}" / "samples.jsonl")
        assert told["truncated"] == sum(not row.ended[0] for row in samples)
        assert told["equal"] == sum(row.answers[0].strip() == row.gold for row in samples)
        assert told["kept"] == len(again[0].pairs(number))
        assert told["generated_score"] == pytest.approx(fmean(row.scores[0] for row in samples))
        assert told["pairs"] == len(whole.trained_on[f"round-{number}"])
    assert whole.figures("round-2")["pairs"] > whole.figures("round-2")["kept"]


def test_a_player_who_left_cannot_be_opened(again):
    with pytest.raises(ValueError, match="player 2 is not in the team"):
        again[1].policy(2)


def test_at_the_start_of_a_round_the_newest_player_has_given_and_gained_nothing(whole):
    for number in (1, 2, 3):
        first = read_json(whole.out / f"round-{number}" / "history.json")[0]
        assert first["rewards/target"] == pytest.approx(0, abs=1e-6)
        assert first["rewards/generated"] == pytest.approx(0, abs=1e-6)
    assert whole.figures("round-1")["loss_first"] == LN2
    # The policy already differs from an older player.
    assert read_json(whole.out / "round-2" / "history.json")[0]["rewards/team_margins"] > 1e-3
