"""Settings of the ``tpaw`` method."""

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
"""What is wrong with a generation as an opponent: it is the target itself (up to white space), it is empty, it was cut
off, or one of the two is more than ``length_ratio`` times as long as the other."""

FAULTS: tuple[Fault, ...] = get_args(Fault)


class RoundSettings(TrainingSettings):
    """Settings of the training of one round, on its pairs."""

    learning_rate: float = Field(default=1e-6, gt=0, description="the highest learning rate of the schedule")


class TpawConfig(ModelSettings, SamplingSettings):
    """Settings of ``tpaw``: in each round the newest player generates, and the policy trains against the whole team.

    [digest] The paper has a team of three checkpoints, the generations of three rounds, eta 6 and gamma 0.5. Its lam is
    not public; SPIN has 0.1.

    ``loss`` also offers related methods, on the same data and with the same trainer:

    - ``spin``: one player, with the generations of this round and the last one.
    - ``tspin``: one player, and the first player's answers as the third of a triplet.
    - ``dpo``: pairs of a right and a wrong answer by the task's verifier, from ``samples_per_prompt`` samples.
    - ``sft``: supervised training on the targets alone.
    """

    may_change: ClassVar[frozenset[str]] = ModelSettings.may_change | {"keep"}

    task: TaskSpec = Field(
        description="the supervised data; each prompt of its train and calibration splits needs an answer"
    )
    start: Path | None = Field(
        default=None, description="the folder of a delta on the base to start from, such as a supervised model"
    )
    sft: SupervisedSettings | None = Field(
        default=None, description="supervised training on the same data before the first round; None: no such training"
    )

    loss: Literal["team", "spin", "tspin", "dpo", "sft"] = Field(
        default="team", description="the loss of a round: that of TPAW (team) or of a related method"
    )
    rounds: int = Field(default=4, ge=1, description="the most rounds")
    team: int | None = Field(
        default=None,
        ge=1,
        description="how many past players each pair is compared with; None: 3 for loss team, else 1",
    )
    generations: int | None = Field(
        default=None,
        ge=1,
        description="how many rounds' generations a round trains on; None: 3 for loss team, 2 for spin, else 1",
    )
    lam: float = Field(default=0.1, gt=0, description="the scale of the log-probability ratios")
    eta: float = Field(
        default=6.0,
        gt=0,
        description="the weight of a target that is less likely than under a player; 1: no extra weight",
    )
    gamma: float = Field(
        default=0.5, ge=0, description="how much more the stronger players count; 0: all players count equally"
    )
    training: RoundSettings = Field(default=RoundSettings(), description="the training of one round")

    prompts_per_round: int | None = Field(
        default=None, ge=1, description="how many prompts of the train split a round uses; None: all of them"
    )
    samples_per_prompt: int = Field(
        default=1, ge=1, description="how many answers are generated per prompt; each makes a pair"
    )
    drop: tuple[Fault, ...] = Field(
        default=FAULTS, description="the faults for which a pair is left out; a truncated one is always left out"
    )
    length_ratio: float = Field(
        default=4.0, gt=1, description="how many times longer (in tokens) one answer of a pair may be than the other"
    )

    held_out: int = Field(
        default=64, ge=1, description="on how many prompts of the calibration split the rounds are evaluated at most"
    )
    judge_by: Literal["score", "log_prob"] = Field(
        default="score",
        description="what the best round is chosen by: the verifier's score, or the log-probability of the held-out "
        "targets",
    )
    patience: int | None = Field(
        default=2, ge=1, description="stop after so many rounds without a better one; None: play all rounds"
    )
    keep: Literal["best", "last"] = Field(default="best", description="which round's policy becomes the delta")

    @property
    def players(self) -> int:
        """The most players in the team."""
        return self.team or (3 if self.loss == "team" else 1)

    @property
    def remembered(self) -> int:
        """How many rounds' generations a round trains on."""
        return self.generations or {"team": 3, "spin": 2}.get(self.loss, 1)

    @model_validator(mode="after")
    def _fits_the_loss(self) -> Self:
        if self.loss != "team" and self.players > 1:
            raise ValueError(f"loss {self.loss} has one player: remove team, or set loss to team")
        if self.loss == "dpo" and self.remembered > 1:
            raise ValueError("dpo makes new pairs in each round: remove generations")
        if self.loss == "tspin" and self.prompts_per_round is not None:
            raise ValueError("tspin compares every answer with that of the first round: remove prompts_per_round")
        return self
