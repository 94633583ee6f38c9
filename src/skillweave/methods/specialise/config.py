"""What can be set when a specialist is made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from skillweave.methods.training.settings import AnswerSettings, ModelSettings, SamplingSettings, TrainingSettings
from skillweave.tasks import TaskSpec


class WarmStartSettings(AnswerSettings):
    """Supervised training on known good answers, for a base that solves too little to learn from its own answers."""

    when: Literal["auto", "always", "never"] = "auto"
    min_solve_rate: float = Field(default=0.2, ge=0, le=1, description="auto: warm up where the base solves less")
    steps: int | None = Field(default=40, ge=1)


class DpoSettings(TrainingSettings):
    """Direct preference optimisation, once a round, over all pairs of the round.

    ``nll_weight`` adds the chosen answers' mean negative log-likelihood, as Iterative RPO does (arXiv 2404.19733)
    [relative]; 0 is DPO alone, as SkillWeave has it [digest]. DPO alone may make the chosen answers *less* likely
    so long as the rejected ones fall faster: on a micro model with short answers it took the solve rate from 0.48
    to 0.38 where the same 30 steps with weight 1 took it to 0.62 (second seed: 0.37 to 0.38 and to 0.68) [ours].
    """

    learning_rate: float = Field(default=5e-6, gt=0)
    beta: float = Field(default=0.1, gt=0, description="weight of staying near the policy of the round's start")
    nll_weight: float = Field(default=1.0, ge=0, description="weight of the chosen answers' likelihood; 0: DPO alone")


class SpecialiseConfig(ModelSettings, SamplingSettings):
    """Settings of ``specialise``: sample, judge, train on what was judged; one task, one delta.

    [digest] 64 samples a prompt, online DPO, full parameters, one run a domain. The defaults here are smaller [ours].
    """

    task: TaskSpec = Field(description="prompts and verifier; the train split is learnt")
    warm_start: WarmStartSettings = WarmStartSettings()
    rounds: int = Field(default=1, ge=0, description="rounds of sampling and DPO")
    dpo: DpoSettings = DpoSettings()

    probe_prompts: int = Field(default=32, ge=1, description="train prompts that the solve rate is taken on")
    prompts_per_round: int = Field(default=128, ge=1)
    samples_per_prompt: int = Field(default=8, ge=1)

    threshold: float = Field(default=0.5, gt=0, le=1, description="an answer whose score reaches it is good")
    max_pairs_per_prompt: int = Field(default=4, ge=1)
    gold_as_chosen: bool = Field(default=True, description="prefer the gold answer where all samples fail [ours]")

    @model_validator(mode="after")
    def _trains_something(self) -> SpecialiseConfig:
        if self.rounds == 0 and self.warm_start.when == "never":
            raise ValueError("rounds is 0 and warm_start.when is never: nothing would be trained")
        if self.rounds and self.samples_per_prompt == 1 and not self.gold_as_chosen:
            raise ValueError("samples_per_prompt is 1 and gold_as_chosen is off: no pair can come of it")
        return self
