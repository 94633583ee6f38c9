"""Evaluates players on held-out prompts: score, likelihood, distance from the start, wins against other players."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from skillweave.base.chat import answer_ids, answer_text
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.pairs import PromptAnswer
from skillweave.methods.tpaw.team import Team
from skillweave.methods.training.answers import Answered, sample_answers
from skillweave.methods.training.run import Run
from skillweave.tasks import Entry, Task


class PlayerEvaluator:
    """Evaluates the players of a run on the same held-out entries, each with a gold answer."""

    def __init__(self, run: Run[TpawConfig, Task], team: Team, entries: Sequence[Entry]) -> None:
        self._run, self._team, self._entries = run, team, entries
        self._targets: list[PromptAnswer] = [
            (entry.prompt, answer_text(run.tokenizer, entry.answer or "", entry.prompt)) for entry in entries
        ]

    def figures(self, number: int, others: Sequence[int]) -> dict[str, Any]:
        """The figures of player ``number``, alone and against the ``others``:

        - ``score``: the mean score of its greedy answers.
        - ``log_prob``: the mean log-probability of a target, in nats.
        - ``tokens``, ``target_tokens``: the mean length of its answers and of the targets, end token included.
        - ``ended``: the share of its answers that it ended; the others were cut off.
        - ``kl_to_start``: the KL divergence from player 0 in nats per answer, estimated on one answer per prompt,
          sampled as in the run. Answers that were cut off do not count; missing if all were.
        - ``wins``: against each of the others, :func:`wins_by_score` and :func:`wins_by_log_prob`. The latter uses only
          the other's answers that ended, and is missing if none did.

        Player 0 has neither ``kl_to_start`` nor ``wins``.
        """
        greedy = self._greedy(number)
        figures: dict[str, Any] = {
            "score": fmean(first_scores(greedy)),
            "log_prob": fmean(self._target_log_probs(number)),
            "tokens": fmean(self._tokens(row.answers[0]) for row in greedy),
            "target_tokens": fmean(self._tokens(answer) for _, answer in self._targets),
            "ended": fmean(row.ended[0] for row in greedy),
        }
        if number:
            sampled = first_answers([row for row in self._answers(number, "drawn") if row.ended[0]])
            if sampled:
                figures["kl_to_start"] = self._kl_to_start(number, sampled)
            figures["wins"] = {str(other): self._wins(number, other) for other in others}
        return figures

    def _wins(self, number: int, other: int) -> dict[str, float]:
        rival = self._greedy(other)
        ended = [at for at, row in enumerate(rival) if row.ended[0]]  # a cut-off answer has no end to be likely
        answers = first_answers([rival[at] for at in ended])
        wins = {"score": wins_by_score(first_scores(self._greedy(number)), first_scores(rival))}
        if ended:
            mine, theirs = self._target_log_probs(number), self._target_log_probs(other)
            wins["log_prob"] = wins_by_log_prob(
                [mine[at] for at in ended],
                self._team.log_probs(number, f"held-out-greedy-{other}", answers),
                [theirs[at] for at in ended],
                self._team.log_probs(other, f"held-out-greedy-{other}", answers),
            )
        return wins

    def _kl_to_start(self, number: int, sampled: list[PromptAnswer]) -> float:
        own, start = (self._team.log_probs(player, f"held-out-drawn-{number}", sampled) for player in (number, 0))
        return fmean(here - there for here, there in zip(own, start, strict=True))

    def _target_log_probs(self, number: int) -> list[float]:
        return self._team.log_probs(number, "held-out-targets", self._targets)

    def _greedy(self, number: int) -> list[Answered]:
        return self._answers(number, "greedy")

    def _answers(self, number: int, how: Literal["greedy", "drawn"]) -> list[Answered]:
        run = self._run
        stage = f"held-out-{number}"
        return sample_answers(
            lambda: self._team.open_to_sample(number),
            run.tokenizer,
            run.data,
            self._entries,
            run.config,
            run.folder / stage / f"{how}.jsonl",
            samples=1,
            name=stage,
            seed=run.config.seed,
            processes=run.processes,
            greedy=how == "greedy",
        )

    def _tokens(self, answer: str) -> int:
        return len(answer_ids(self._run.tokenizer, answer))


def first_scores(answered: Sequence[Answered]) -> list[float]:
    """The score of each prompt's first answer."""
    return [row.scores[0] for row in answered]


def first_answers(answered: Sequence[Answered]) -> list[PromptAnswer]:
    """Each prompt with its first answer."""
    return [(row.prompt, row.answers[0]) for row in answered]


def wins_by_score(own: Sequence[float], other: Sequence[float]) -> float:
    """The share of prompts on which the player's own score is higher; a tie counts half."""
    return fmean((mine > theirs) + 0.5 * (mine == theirs) for mine, theirs in zip(own, other, strict=True))


def wins_by_log_prob(
    own_target: Sequence[float],
    own_answer: Sequence[float],
    other_target: Sequence[float],
    other_answer: Sequence[float],
) -> float:
    """The share of prompts on which the player prefers the target to the other's answer more than the other does.

    All arguments are log-probabilities in nats, one per prompt: of the target and of the other's answer, under the
    player and under the other. A win means P(x, y) > P(x, y') in the loss with that one opponent, for any lam. If the
    other's answer is the target, both sides are equal, and the tie counts half.
    """
    mine = [target - answer for target, answer in zip(own_target, own_answer, strict=True)]
    theirs = [target - answer for target, answer in zip(other_target, other_answer, strict=True)]
    return wins_by_score(mine, theirs)
