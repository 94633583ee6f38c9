"""Makes the rows that a round trains on: pairs of this and earlier rounds, with every player's log-probabilities.

A row comes about in four steps::

    round-k/samples.jsonl -> SelfPlayPair     target and generation, with its faults (pairs.py)
                          -> usable pairs     without faulty, repeated or too long ones
                          -> log-probabilities of both answers under every player (team.py)
                          -> TrainingRow      token ids and log-probabilities, for TeamTrainer (trainer.py)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.pairs import (
    PromptAnswer,
    SelfPlayPair,
    count_faults,
    pairs_by_verifier,
    pairs_of_samples,
    without_faults,
)
from skillweave.methods.tpaw.team import Team
from skillweave.methods.training.answers import Answered, read_samples
from skillweave.methods.training.preferences import cut_off
from skillweave.methods.training.run import Run
from skillweave.tasks import Task


@dataclass(frozen=True)
class TrainingRow:
    """One pair, ready to be trained on.

    - ``prompt``: its token ids.
    - ``answers``: the token ids of the target, of the generation, and for ``tspin`` of the very first player's answer.
    - ``player_log_probs``: for each player, the newest first, the summed log-probability of the target and of the
      generation, in nats.
    """

    prompt: list[int]
    answers: list[list[int]]
    player_log_probs: list[tuple[float, float]]

    @property
    def tokens(self) -> int:
        """How many tokens go through the model: the prompt once per answer, and all answers."""
        return sum(len(self.prompt) + len(answer) for answer in self.answers)


class RowMaker:
    """Makes the rows of each round from the answers in ``round-k/samples.jsonl``."""

    def __init__(self, run: Run[TpawConfig, Task], team: Team) -> None:
        self._run, self._team = run, team
        self._all_pairs: dict[int, list[SelfPlayPair]] = {}
        self._usable_pairs: dict[int, list[SelfPlayPair]] = {}

    def counts(self, number: int) -> dict[str, int]:
        """Counts of the round's own generations: all, those with each fault, the too long and the usable ones."""
        generated = self._generated(number)
        good = without_faults(generated, self._run.config.drop)
        usable = self.pairs(number)
        faults = count_faults(generated)
        if self._run.config.loss == "dpo":  # its pairs have only complete answers, so the samples are counted
            faults["truncated"] = cut_off(self._samples(number))
        return {"generations": len(generated), **faults, "too_long": len(good) - len(usable), "kept": len(usable)}

    def pairs(self, number: int) -> list[SelfPlayPair]:
        """The usable pairs of a round's own generations: without faults, and within ``max_length``."""
        if number not in self._usable_pairs:
            good = without_faults(self._generated(number), self._run.config.drop)
            self._usable_pairs[number] = [pair for pair in good if self._fits(pair)]
        return self._usable_pairs[number]

    def of_round(self, number: int, players: Sequence[int]) -> list[TrainingRow]:
        """One row per pair of the rounds that this round trains on, the newest round first, no pair twice."""
        rounds = self._rounds_used_in(number)
        pairs = without_faults([pair for each in rounds for pair in self.pairs(each)], drop=())
        per_player = [self._scores_of(player, rounds, pairs) for player in players]
        return [
            TrainingRow(
                prompt=self._prompt(pair),
                answers=[self._answer(text) for text in self._texts(pair)],
                player_log_probs=[scores[index] for scores in per_player],
            )
            for index, pair in enumerate(pairs)
        ]

    def _rounds_used_in(self, number: int) -> list[int]:
        """The rounds whose generations round ``number`` trains on: itself and those before it, the newest first."""
        oldest = max(1, number - self._run.config.remembered + 1)
        return list(range(number, oldest - 1, -1))

    def _scores_of(
        self, player: int, rounds: Sequence[int], pairs: Sequence[SelfPlayPair]
    ) -> list[tuple[float, float]]:
        """One player's log-probabilities of each pair's target and generation; each round is scored once and stored."""
        target_scores = self._target_scores(player, last=max(rounds))
        generated_scores: dict[tuple[str, str], float] = {}
        for number in sorted(rounds):
            answers = _by_text([(pair, pair.generated) for pair in self.pairs(number)])
            scores = self._team.log_probs(player, f"round-{number}-generated", list(answers.values()))
            generated_scores.update(zip(answers, scores, strict=True))
        return [(target_scores[pair.id, pair.target], generated_scores[pair.id, pair.generated]) for pair in pairs]

    def _target_scores(self, player: int, last: int) -> dict[tuple[str, str], float]:
        """One player's log-probabilities of the targets of all rounds that it has been used with, up to ``last``.

        A target that comes in several rounds is scored in the first of them. That round must be the same whenever this
        is called, so it always starts at the oldest round that the player was ever used with.
        """
        first_round_of_player = player + 1  # a player joins the team at the end of the round with its number
        oldest = min(self._rounds_used_in(first_round_of_player))
        target_scores: dict[tuple[str, str], float] = {}
        for number in range(oldest, last + 1):
            answers = _by_text([(pair, pair.target) for pair in self.pairs(number)])
            new = {key: answer for key, answer in answers.items() if key not in target_scores}
            scores = self._team.log_probs(player, f"round-{number}-targets", list(new.values()))
            target_scores.update(zip(new, scores, strict=True))
        return target_scores

    @functools.cached_property
    def _first_answers(self) -> dict[str, str]:
        """Prompt id -> an answer of the very first player without faults, if it has one."""
        first: dict[str, str] = {}
        for pair in without_faults(self._generated(1), self._run.config.drop):
            first.setdefault(pair.id, pair.generated)
        return first

    def _generated(self, number: int) -> list[SelfPlayPair]:
        """All pairs of a round's own generations, read and checked once."""
        if number not in self._all_pairs:
            config = self._run.config
            samples = self._samples(number)
            self._all_pairs[number] = (
                pairs_by_verifier(samples, config.seed)
                if config.loss == "dpo"
                else pairs_of_samples(self._run.tokenizer, samples, config.length_ratio)
            )
        return self._all_pairs[number]

    def _samples(self, number: int) -> list[Answered]:
        return read_samples(self._run.folder / f"round-{number}" / "samples.jsonl")

    def _fits(self, pair: SelfPlayPair) -> bool:
        longest = max(len(self._answer(text)) for text in self._texts(pair))
        return len(self._prompt(pair)) + longest <= self._run.max_length

    def _texts(self, pair: SelfPlayPair) -> list[str]:
        """The answers of a row.

        If the first player's answer was faulty, ``tspin`` gets the generation in its place, which teaches nothing.
        """
        texts = [pair.target, pair.generated]
        if self._run.config.loss == "tspin":
            texts.append(self._first_answers.get(pair.id, pair.generated))
        return texts

    def _prompt(self, pair: SelfPlayPair) -> list[int]:
        return prompt_ids(self._run.tokenizer, pair.prompt)

    def _answer(self, text: str) -> list[int]:
        return answer_ids(self._run.tokenizer, text)


def _by_text(answers: Sequence[tuple[SelfPlayPair, str]]) -> dict[tuple[str, str], PromptAnswer]:
    """(prompt id, answer) -> prompt and answer, each once."""
    return {(pair.id, text): (pair.prompt, text) for pair, text in answers}
