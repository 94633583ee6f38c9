"""The rows that a round trains on: pairs of this and earlier rounds, each with what every player thinks of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.pairs import Opponent, Side, counted, opponents, preferences, sound
from skillweave.methods.tpaw.team import Team
from skillweave.methods.training.answers import Answered, read_samples
from skillweave.methods.training.pairs import cut_off
from skillweave.methods.training.run import Run
from skillweave.tasks import Task


class Rows:
    """Makes the rows of each round out of the answers that lie in ``round-k/samples.jsonl``."""

    def __init__(self, run: Run[TpawConfig, Task], team: Team) -> None:
        self._run, self._team = run, team
        self._found_in: dict[int, list[Opponent]] = {}
        self._pairs: dict[int, list[Opponent]] = {}

    def counts(self, number: int) -> dict[str, int]:
        """What came of the round's own generations: how many, how many with each fault, how many are kept."""
        found = self._found(number)
        sane = sound(found, self._run.config.drop)
        kept = self.pairs(number)
        marks = counted(found)
        if self._run.config.loss == "dpo":  # its pairs hold whole answers only: those that were cut off made none
            marks["truncated"] = cut_off(self._samples(number))
        return {"generations": len(found), **marks, "too_long": len(sane) - len(kept), "kept": len(kept)}

    def pairs(self, number: int) -> list[Opponent]:
        """The sound pairs of a round's own generations that fit ``max_length``."""
        if number not in self._pairs:
            sane = sound(self._found(number), self._run.config.drop)
            self._pairs[number] = [pair for pair in sane if self._fits(pair)]
        return self._pairs[number]

    def of_round(self, number: int, players: Sequence[int]) -> list[dict[str, Any]]:
        """One row a pair of the remembered rounds, the newest first, none twice.

        ``prompt``: token ids; ``sides``: token ids of target and generation (and, for ``tspin``, of the very first
        answer); ``players``: [log-probability of the target, of the generation] under each player, in nats.
        """
        rounds = range(number, max(0, number - self._run.config.remembered), -1)
        union = sound([pair for each in rounds for pair in self.pairs(each)], drop=())
        thought = [self._thought(player, rounds, union) for player in players]
        return [
            {
                "prompt": self._prompt(pair),
                "sides": [self._answer(text) for text in _texts(pair, self._first)],
                "players": [of_player[index] for of_player in thought],
            }
            for index, pair in enumerate(union)
        ]

    def _thought(self, player: int, rounds: Sequence[int], union: Sequence[Opponent]) -> list[tuple[float, float]]:
        """What one player thinks of target and generation of each pair; of each round's it is asked once."""
        targets = self._targets(player, rounds[0])
        generated: dict[tuple[str, str], float] = {}
        for number in sorted(rounds):
            sides = self._distinct([(pair, pair.generated) for pair in self.pairs(number)])
            values = self._team.log_probs(player, f"round-{number}-generated", list(sides.values()))
            generated.update(zip(sides, values, strict=True))
        return [(targets[pair.id, pair.target], generated[pair.id, pair.generated]) for pair in union]

    def _targets(self, player: int, last: int) -> dict[tuple[str, str], float]:
        """The targets of all rounds that this player has met until ``last``; it came in at round ``player`` + 1."""
        known: dict[tuple[str, str], float] = {}
        for number in range(max(1, player + 2 - self._run.config.remembered), last + 1):
            sides = self._distinct([(pair, pair.target) for pair in self.pairs(number)])
            fresh = {key: side for key, side in sides.items() if key not in known}
            values = self._team.log_probs(player, f"round-{number}-targets", list(fresh.values()))
            known.update(zip(fresh, values, strict=True))
        return known

    @functools.cached_property
    def _first(self) -> dict[str, str] | None:
        """A sound answer of the very first player to each prompt that has one, where the loss asks for it."""
        if self._run.config.loss != "tspin":
            return None
        first: dict[str, str] = {}
        for pair in sound(self._found(1), self._run.config.drop):
            first.setdefault(pair.id, pair.generated)
        return first

    def _found(self, number: int) -> list[Opponent]:
        """All pairs of a round's own generations, read and looked through once."""
        if number not in self._found_in:
            config = self._run.config
            samples = self._samples(number)
            self._found_in[number] = (
                preferences(samples, config.seed)
                if config.loss == "dpo"
                else opponents(self._run.tokenizer, samples, config.length_ratio)
            )
        return self._found_in[number]

    def _samples(self, number: int) -> list[Answered]:
        return read_samples(self._run.folder / f"round-{number}" / "samples.jsonl")

    def _fits(self, pair: Opponent) -> bool:
        longest = max(len(self._answer(text)) for text in _texts(pair, self._first))
        return len(self._prompt(pair)) + longest <= self._run.max_length

    def _prompt(self, pair: Opponent) -> list[int]:
        return prompt_ids(self._run.tokenizer, pair.prompt)

    def _answer(self, text: str) -> list[int]:
        return answer_ids(self._run.tokenizer, text)

    @staticmethod
    def _distinct(answers: Sequence[tuple[Opponent, str]]) -> dict[tuple[str, str], Side]:
        return {(pair.id, text): (pair.prompt, text) for pair, text in answers}


def _texts(pair: Opponent, first: dict[str, str] | None) -> list[str]:
    """The sides of a row. Where the first answer was degenerate the generation stands for it, and tells nothing."""
    if first is None:
        return [pair.target, pair.generated]
    return [pair.target, pair.generated, first.get(pair.id, pair.generated)]
