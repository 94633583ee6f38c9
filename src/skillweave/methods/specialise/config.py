"""Settings of the ``specialise`` method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from skillweave.methods.training.settings import ModelSettings, SamplingSettings, SupervisedSettings, TrainingSettings
from skillweave.tasks import TaskSpec


class WarmStartSettings(SupervisedSettings):
    """Settings of the supervised training on known good answers.

    It is for a base that solves too few prompts to learn from its own answers.
    """

    when: Literal["auto", "always", "never"] = Field(
        default="auto", description="whether to warm up; auto: if the base solves less than min_solve_rate"
    )
    min_solve_rate: float = Field(
        default=0.2, ge=0, le=1, description="with when: auto, warm up if the base solves a smaller fraction than this"
    )
    steps: int | None = Field(
        default=40, ge=1, description="the number of optimiser steps; if it is given, epochs is ignored"
    )


class DpoSettings(TrainingSettings):
    """Settings of direct preference optimisation (DPO), which runs once per round on all pairs of the round.

    ``nll_weight`` adds the mean negative log-likelihood of the chosen answers, as Iterative RPO does (arXiv 2404.19733)
    [relative]; 0 is DPO alone, as in SkillWeave [digest]. DPO alone may make the chosen answers *less* likely, as long
    as the rejected ones fall faster. On a micro model with short answers, 30 steps of DPO alone took the solve rate
    from 0.48 to 0.38, and the same steps with weight 1 took it to 0.62 (second seed: from 0.37 to 0.38 and to 0.68)
    [ours].
    """

    learning_rate: float = Field(default=5e-6, gt=0, description="the highest learning rate of the schedule")
    beta: float = Field(default=0.1, gt=0, description="how strongly the policy is kept near that of the round's start")
    nll_weight: float = Field(
        default=1.0, ge=0, description="the weight of the chosen answers' likelihood in the loss; 0: DPO alone"
    )


class SpecialiseConfig(ModelSettings, SamplingSettings):
    """Settings of ``specialise``: sample answers, score them, train on the scored answers. One task makes one delta.

    [digest] The paper has 64 samples per prompt, online DPO, full parameters and one run per domain. The defaults here
    are smaller [ours].
    """

    task: TaskSpec = Field(description="the prompts and their verifier; the method learns from the train split")
    warm_start: WarmStartSettings = Field(
        default=WarmStartSettings(), description="the supervised training before the first round"
    )
    rounds: int = Field(default=1, ge=0, description="the number of rounds of sampling and DPO")
    pairs: Literal["auto", "own", "given", "both"] = Field(
        default="auto",
        description="the pairs that DPO learns from. own: the policy's scored samples; given: the task's `chosen` and "
        "`rejected`, all of them in each round; both: own and given; auto: given if the task has some, else own",
    )
    dpo: DpoSettings = Field(default=DpoSettings(), description="the DPO of each round")

    probe_prompts: int = Field(
        default=32, ge=1, description="how many train prompts the solve rate is measured on, before and after"
    )
    prompts_per_round: int = Field(default=128, ge=1, description="how many train prompts a round samples answers for")
    samples_per_prompt: int = Field(default=8, ge=1, description="how many answers are sampled per prompt")

    threshold: float = Field(default=0.5, gt=0, le=1, description="an answer is good if its score is at least this")
    max_pairs_per_prompt: int = Field(default=4, ge=1, description="how many pairs a prompt may have in a round")
    gold_as_chosen: bool = Field(
        default=True, description="if all samples of a prompt fail, prefer the gold answer to them [ours]"
    )

    @model_validator(mode="after")
    def _trains_something(self) -> SpecialiseConfig:
        if self.rounds == 0 and self.warm_start.when == "never":
            raise ValueError("rounds is 0 and warm_start.when is never: nothing would be trained. Change one of them")
        if self.rounds and self.samples_per_prompt == 1 and not self.gold_as_chosen:
            raise ValueError(
                "samples_per_prompt is 1 and gold_as_chosen is off: no pair can be made. Raise "
                "samples_per_prompt or set gold_as_chosen"
            )
        return self
