"""What a player is worth on the prompts that are held out: score, likelihood, distance, wins against the others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from skillweave.base.chat import answer_ids, answer_text
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.pairs import Side
from skillweave.methods.tpaw.team import Team
from skillweave.methods.training.answers import Answered, sample_answers
from skillweave.methods.training.run import Run
from skillweave.tasks import Entry, Task


class Judge:
    """Judges the players of a run on the same held-out entries, each with a gold answer."""

    def __init__(self, run: Run[TpawConfig, Task], team: Team, entries: Sequence[Entry]) -> None:
        self._run, self._team, self._entries = run, team, entries
        self._targets: list[Side] = [
            (entry.prompt, answer_text(run.tokenizer, entry.answer or "", entry.prompt)) for entry in entries
        ]

    def figures(self, number: int, others: Sequence[int]) -> dict[str, Any]:
        """What player ``number`` does, and how it stands against the ``others``.

        ``score``: mean score of its greedy answers; ``log_prob``: mean log-probability of a target (nats); ``tokens``:
        mean length of its answers, end included, beside ``target_tokens``; ``ended``: share that ended by themselves;
        ``kl_to_start``: KL to player 0 in nats an answer, estimated on one answer a prompt, drawn as the run draws, of
        those that ended (none: left out); ``wins``: against each of the others :func:`wins_by_score` and
        :func:`wins_by_log_prob` (of the other's answers that ended; none: left out).
        """
        greedy = self._greedy(number)
        figures: dict[str, Any] = {
            "score": fmean(scores(greedy)),
            "log_prob": fmean(self._of_targets(number)),
            "tokens": fmean(self._tokens(row.answers[0]) for row in greedy),
            "target_tokens": fmean(self._tokens(answer) for _, answer in self._targets),
            "ended": fmean(row.ended[0] for row in greedy),
        }
        if number:
            drawn = sides([row for row in self._answers(number, "drawn") if row.ended[0]])
            if drawn:
                figures["kl_to_start"] = self._kl_to_start(number, drawn)
            figures["wins"] = {str(other): self._wins(number, other) for other in others}
        return figures

    def _wins(self, number: int, other: int) -> dict[str, float]:
        rival = self._greedy(other)
        whole = [at for at, row in enumerate(rival) if row.ended[0]]  # a cut-off answer has no end to be likely
        answers = sides([rival[at] for at in whole])
        wins = {"score": wins_by_score(scores(self._greedy(number)), scores(rival))}
        if whole:
            wins["log_prob"] = wins_by_log_prob(
                [self._of_targets(number)[at] for at in whole],
                self._team.log_probs(number, f"held-out-greedy-{other}", answers),
                [self._of_targets(other)[at] for at in whole],
                self._team.log_probs(other, f"held-out-greedy-{other}", answers),
            )
        return wins

    def _kl_to_start(self, number: int, drawn: list[Side]) -> float:
        own, start = (self._team.log_probs(player, f"held-out-drawn-{number}", drawn) for player in (number, 0))
        return fmean(here - there for here, there in zip(own, start, strict=True))

    def _of_targets(self, number: int) -> list[float]:
        return self._team.log_probs(number, "held-out-targets", self._targets)

    def _greedy(self, number: int) -> list[Answered]:
        return self._answers(number, "greedy")

    def _answers(self, number: int, how: str) -> list[Answered]:
        run = self._run
        return sample_answers(
            lambda: self._team.open_to_sample(number), run.tokenizer, run.data, self._entries,
            run.config, run.folder / f"held-out-{number}" / f"{how}.jsonl", samples=1, name=f"held-out-{number}",
            seed=run.config.seed, processes=run.processes, greedy=how == "greedy",
        )  # fmt: skip

    def _tokens(self, answer: str) -> int:
        return len(answer_ids(self._run.tokenizer, answer))


def scores(answered: Sequence[Answered]) -> list[float]:
    """The score of each prompt's first answer."""
    return [row.scores[0] for row in answered]


def sides(answered: Sequence[Answered]) -> list[Side]:
    """Each prompt with its first answer."""
    return [(row.prompt, row.answers[0]) for row in answered]


def wins_by_score(own: Sequence[float], other: Sequence[float]) -> float:
    """Share of prompts on which the own score is higher; a tie counts half."""
    return fmean((mine > theirs) + 0.5 * (mine == theirs) for mine, theirs in zip(own, other, strict=True))


def wins_by_log_prob(
    own_target: Sequence[float], own_answer: Sequence[float], other_target: Sequence[float],
    other_answer: Sequence[float],
) -> float:  # fmt: skip
    """Share of prompts on which the player prefers the target to the other's own answer more than the other does.

    That is P(x, y) > P(x, y') of the loss with that one opponent, whatever lam; nats, one value a prompt. Where the
    other answers with the target itself both sides are equal: a tie, which counts half.
    """
    mine = [target - answer for target, answer in zip(own_target, own_answer, strict=True)]
    theirs = [target - answer for target, answer in zip(other_target, other_answer, strict=True)]
    return wins_by_score(mine, theirs)
