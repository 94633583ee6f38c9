"""What can be set when a model plays against its past selves."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from skillweave.methods.training.settings import (
    ModelSettings,
    SamplingSettings,
    SupervisedSettings,
    TrainingSettings,
)
from skillweave.tasks import TaskSpec

Fault = Literal["equal", "empty", "truncated", "length"]
"""What is wrong with a generation as an opponent: it is the target itself (white space apart), it says nothing, it
was cut off, or one of the two is more than ``length_ratio`` times as long as the other."""

FAULTS: tuple[Fault, ...] = get_args(Fault)


class RoundSettings(TrainingSettings):
    """The training of one round, over its pairs."""

    learning_rate: float = Field(default=1e-6, gt=0)


class TpawConfig(ModelSettings, SamplingSettings):
    """Settings of ``tpaw``: rounds of generation by the newest player, then training against the whole team.

    [digest] A team of three checkpoints, the generations of three rounds, eta 6, gamma 0.5. lam is not public; SPIN
    has 0.1. ``loss`` gives the relatives too, on the same data and with the same trainer: ``spin`` (one player, this
    and the last round's generations), ``tspin``, ``dpo`` (pairs of answers that the task's verifier calls right and
    wrong, ``samples_per_prompt`` drawn) and ``sft`` (the targets alone).
    """

    may_change: ClassVar[frozenset[str]] = ModelSettings.may_change | {"keep"}

    task: TaskSpec = Field(description="the supervised data; of its train split each prompt needs an answer")
    start: Path | None = Field(default=None, description="a delta on the base to begin from: the supervised model")
    sft: SupervisedSettings | None = Field(default=None, description="supervised training on the same data, first")

    loss: Literal["team", "spin", "tspin", "dpo", "sft"] = "team"
    rounds: int = Field(default=4, ge=1)
    team: int | None = Field(
        default=None, ge=1, description="players a pair is held against; None: 3, or 1 but for team"
    )
    generations: int | None = Field(
        default=None, ge=1, description="rounds whose generations are played against; None: 3, for spin 2, else 1"
    )
    lam: float = Field(default=0.1, gt=0, description="scale of the log-probability ratios")
    eta: float = Field(default=6.0, gt=0, description="weight of a target that fell below a player; 1: none")
    gamma: float = Field(default=0.5, ge=0, description="how much more the stronger players count; 0: all alike")
    training: RoundSettings = RoundSettings()

    prompts_per_round: int | None = Field(default=None, ge=1, description="None: all of the train split each round")
    samples_per_prompt: int = Field(default=1, ge=1, description="generations a prompt; each makes a pair")
    drop: tuple[Fault, ...] = Field(
        default=FAULTS, description="faults for which a pair is left out; a truncated one always is"
    )
    length_ratio: float = Field(default=4.0, gt=1, description="how unlike in tokens two answers may be")

    held_out: int = Field(default=64, ge=1, description="most prompts of the calibration split to judge the rounds on")
    judge_by: Literal["score", "log_prob"] = Field(
        default="score", description="choose the round by the verifier, or by the likelihood of the held-out targets"
    )
    patience: int | None = Field(
        default=2, ge=1, description="stop after so many rounds without a better one; None: never"
    )
    keep: Literal["best", "last"] = "best"

    @property
    def players(self) -> int:
        """Most players in the team."""
        return self.team or (3 if self.loss == "team" else 1)

    @property
    def remembered(self) -> int:
        """Rounds whose generations are played against."""
        return self.generations or {"team": 3, "spin": 2}.get(self.loss, 1)

    @model_validator(mode="after")
    def _fits_the_loss(self) -> Self:
        if self.loss != "team" and self.players > 1:
            raise ValueError(f"loss {self.loss} has one player: remove team, or set loss to team")
        if self.loss == "dpo" and self.remembered > 1:
            raise ValueError("dpo's pairs are made anew each round: remove generations")
        if self.loss == "tspin" and self.prompts_per_round is not None:
            raise ValueError("tspin holds every answer against that of the first round: remove prompts_per_round")
        return self
