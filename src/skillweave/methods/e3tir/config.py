"""Settings of the ``e3tir`` method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from skillweave.config import Config
from skillweave.methods.training.settings import AnswerSettings, ModelSettings, OptimiserSettings, TrainingSettings
from skillweave.tasks import TaskSpec
from skillweave.tasks.with_tools import ToolSettings, ToolUse, tools_misfit
from skillweave.tools.conversation import ConversationSettings

SCRIPTED: Literal["scripted"] = "scripted"
"""The value of ``experts`` that makes the task's own solver write the traces."""


class RolloutSettings(ConversationSettings):
    """How the policy plays conversations. [digest] 8192 tokens, at most 512 of them from one tool call, 4 calls."""

    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="sampling temperature of the policy in rollouts"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling: share of the probability to draw from")


class RewardSettings(Config):
    """The reward of a conversation: ``right`` times the verifier's score, plus or minus something for its format.

    After Tool-Star [relative]: -1 for a bad format (no answer, or a call that could not be read), 0 for a wrong answer,
    1 for a right one, 0.1 more if several tools were used to get it right.
    """

    right: float = Field(default=1.0, allow_inf_nan=False, description="reward of an answer that the verifier scores 1")
    no_answer: float = Field(
        default=-1.0, le=0, allow_inf_nan=False, description="reward of a conversation that ended without an answer"
    )
    malformed: float = Field(
        default=-1.0,
        le=0,
        allow_inf_nan=False,
        description="reward of a conversation with a call that could not be read, or of a tool that does not exist",
    )
    several_tools: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="added to a right answer if two different tools gave results",
    )


class GroupSettings(OptimiserSettings):
    """One stage of RL: optimiser steps, each on ``prompts`` groups of conversations.

    A group holds ``n`` conversations that the policy starts itself and ``m`` that continue an expert's prefix.
    """

    steps: int = Field(ge=0, description="batches of rollouts; 0: skip the stage")
    budget: int | None = Field(
        default=None,
        ge=1,
        description="tokens that the policy may write in this stage, which ends after the step that reaches this "
        "number; None: no limit",
    )
    n: int = Field(ge=1, description="conversations that the policy starts itself, for each prompt")
    m: int = Field(default=0, ge=0, description="conversations that continue an expert's prefix, for each prompt")
    prompts: int = Field(default=16, ge=1, description="prompts in a batch, over all processes together")
    updates: int = Field(
        default=1, ge=1, description="optimiser steps on each batch; if more than one, each step uses a part of it"
    )
    learning_rate: float = Field(default=1e-6, gt=0, allow_inf_nan=False, description="peak learning rate of AdamW")
    micro_batch_size: int | None = Field(
        default=8,
        ge=1,
        description="most conversations trained on at once in one process; None: all conversations of this process",
    )
    warmup: float = Field(
        default=0.0, ge=0, le=1, description="fraction of the steps in which the learning rate rises to its peak"
    )
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        default="constant_with_warmup", description="how the learning rate changes after the warm-up steps"
    )

    @property
    def training(self) -> TrainingSettings:
        """These settings in the form that the trainers expect; an example is a conversation."""
        return TrainingSettings(
            steps=self.steps * self.updates,
            batch_size=self.prompts * self.size // self.updates,
            **self.model_dump(include=set(OptimiserSettings.model_fields)),
        )

    @property
    def size(self) -> int:
        """The number of conversations in a group."""
        return self.n + self.m

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if self.size < 2:
            raise ValueError("a group needs two conversations to compare: set n to at least 2")
        if (self.prompts * self.size) % self.updates:
            raise ValueError(
                f"updates ({self.updates}) does not divide the {self.prompts * self.size} conversations of a batch"
            )
        return self


class WarmUpSettings(GroupSettings):
    """The warm-up with experts. [digest] n 8, m 8, three anchors, 50 steps."""

    steps: int = Field(default=50, ge=0, description="batches of rollouts; 0: skip the stage")
    n: int = Field(default=8, ge=1, description="conversations that the policy starts itself, for each prompt")
    m: int = Field(default=8, ge=0, description="conversations that continue an expert's prefix, for each prompt")


class RlSettings(GroupSettings):
    """Ordinary RL after the warm-up. [digest] n doubled, no expert, 250 steps."""

    steps: int = Field(default=250, ge=0, description="batches of rollouts; 0: skip the stage")
    n: int = Field(default=16, ge=1, description="conversations that the policy starts itself, for each prompt")


class ExpertSettings(Config):
    """How expert traces enter a group. Each reading that the paper leaves open is an option.

    The control ``mixing: sum`` puts one copy of the trace into a group, whatever ``m`` is, and nothing branches.
    """

    branch: Literal["anchors", "turns", "random", "annealed", "own", "whole"] = Field(
        default="anchors",
        description="where branches leave a trace: anchors (the positions of highest entropy), turns (the same, but "
        "only where a turn of the expert begins), random positions, or annealed (the turn that begins nearest to a "
        "share of the trace, which falls from 95% in the first batch to 5% in the last, as in Prefix-RFT); whole: the "
        "complete trace is in the group, as in LUFFY; own: no expert, branches leave the policy's own conversations "
        "after a tool's result, as in Tree-GRPO",
    )
    k: int = Field(default=3, ge=1, description="anchors for each trace")
    ask: Literal["always", "failed"] = Field(
        default="always",
        description="failed: branches are played only for prompts on which every conversation of the policy failed, "
        "as in BREAD; this saves their tokens",
    )
    filter: bool = Field(
        default=True, description="the expert pool joins only if its best reward is higher than the policy's best"
    )
    lam: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the advantage within the whole group, against that within the branches, for a branch",
    )
    detach: bool = Field(default=True, description="no gradient through an expert prefix with a negative advantage")
    uncertain: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of a prefix's tokens that have a gradient: those before which the policy's entropy is "
        "highest; 0.2 in Prefix-RFT",
    )
    ratio: Literal["mixture", "shaped", "on_policy"] = Field(
        default="mixture", description="the importance ratio of an expert's tokens"
    )
    mixing: Literal["group", "sum"] = Field(
        default="group",
        description="group: experts are in the group, by their advantages; sum: the plain sum of the RL loss and "
        "weight times the supervised loss on the expert's tokens",
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="weight of the supervised loss, for mixing: sum"
    )

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.branch == "own" and (self.mixing == "sum" or self.ask == "failed"):
            raise ValueError("branch: own has no expert: leave mixing at 'group' and ask at 'always'")
        if self.uncertain < 1 and (self.branch in ("whole", "own") or self.mixing == "sum"):
            raise ValueError(
                "uncertain is the share of a branch's prefix: it needs mixing: group, and branch: anchors, turns, "
                "random or annealed"
            )
        return self


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "warm_up": {"steps": 50, "n": 8, "m": 8},
        "rl": {"steps": 250, "n": 16, "m": 0},
        "expert": {
            "branch": "anchors",
            "k": 3,
            "ask": "always",
            "filter": True,
            "lam": 0.5,
            "detach": True,
            "uncertain": 1.0,
            "ratio": "mixture",
            "mixing": "group",
        },
    }
}
"""For each preset the values that replace defaults. ``paper`` has the published ones [digest], with our readings [ours]
where the paper leaves them open: ``lam``, ``ratio``."""


class E3tirConfig(ModelSettings):
    """Settings of ``e3tir``: optional supervised training, the warm-up on three kinds of experience, then RL."""

    # It is excluded from a run's settings: they have the values themselves, so a run resumes with or without it.
    preset: Literal["paper"] | None = Field(
        default=None,
        exclude=True,
        description="paper: the published values of `warm_up`, `rl` and `expert` replace the defaults; a key that is "
        "given explicitly wins",
    )
    task: TaskSpec = Field(description="prompts with a verifier")
    tools: ToolSettings | None = Field(
        default=None, description="tools that the model may call; None: the task's own tools"
    )
    experts: Path | Literal["scripted"] | None = Field(
        default=None, description="a JSONL file of traces, or 'scripted'; None: scripted if the task has a solver"
    )
    traces: int | None = Field(default=None, ge=1, description="most expert traces to use; None: all")

    sft: AnswerSettings | None = Field(
        default=None, description="supervised training on the traces before the warm-up; None: skip it"
    )
    warm_up: WarmUpSettings = Field(default=WarmUpSettings(), description="the warm-up with experts")
    rl: RlSettings = Field(default=RlSettings(), description="ordinary RL after the warm-up")
    expert: ExpertSettings = Field(default=ExpertSettings(), description="how expert traces enter a group")
    reward: RewardSettings = Field(default=RewardSettings(), description="the reward of a conversation")
    rollout: RolloutSettings = Field(default=RolloutSettings(), description="how the policy plays conversations")
    clip: float = Field(
        default=0.2,
        gt=0,
        allow_inf_nan=False,
        description="GRPO's epsilon: ratios are clipped at 1 - clip and 1 + clip",
    )

    evaluate_every: int = Field(
        default=10, ge=1, description="batches between two evaluations on the calibration split"
    )
    evaluate_on: int = Field(
        default=64, ge=0, description="most prompts of the calibration split to evaluate on; 0: no evaluation"
    )
    show_every: int = Field(default=25, ge=1, description="batches between two groups that are drawn as trees")

    @property
    def tool_use(self) -> ToolUse:
        """The tool settings to use when querying the trained model."""
        conversation = self.rollout.model_dump(include=set(ConversationSettings.model_fields))
        return ToolUse(tools=self.tools, **conversation)

    @property
    def asks_experts(self) -> dict[str, str]:
        """The settings for which a stage needs expert traces; each maps to the change that makes it need none."""
        asks = {"sft": "sft to null"} if self.sft is not None else {}
        if self.expert.branch == "own":
            return asks
        for name, stage in (("warm_up.m", self.warm_up), ("rl.m", self.rl)):
            if stage.steps and stage.m:
                asks[name] = f"{name} to 0"
        return asks

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """The values of the preset where no value was given."""
        preset = PRESETS.get(str(values.get("preset"))) if isinstance(values, Mapping) else None
        if preset is None:
            return values  # none, or an unknown one: the error about it names those that exist
        merged = dict(values)
        for name, part in preset.items():
            given = values.get(name, {})
            if isinstance(given, Config):
                given = given.model_dump(exclude_unset=True)
            if isinstance(given, Mapping):
                merged[name] = {**part, **given}
        return merged

    @model_validator(mode="before")
    @classmethod
    def _tensorboard_by_its_old_name(cls, values: Any) -> Any:
        """``tensorboard: true`` is the older form of ``report_to: tensorboard``."""
        if not isinstance(values, dict) or not isinstance(values.get("tensorboard"), bool):
            return values
        others = {key: value for key, value in values.items() if key != "tensorboard"}
        return {"report_to": "tensorboard", **others} if values["tensorboard"] else others

    @model_validator(mode="before")
    @classmethod
    def _instruction_at_the_top(cls, values: Any) -> Any:
        """``instruction: ...`` at the top is the older form of ``rollout: {instruction: ...}``."""
        if not isinstance(values, Mapping) or "instruction" not in values:
            return values
        others = {key: value for key, value in values.items() if key != "instruction"}
        rollout = others.get("rollout", {})
        if isinstance(rollout, RolloutSettings):
            rollout = rollout.model_dump(exclude_unset=True)
        if not isinstance(rollout, Mapping):
            return others  # the error about `rollout` comes first
        if "instruction" in rollout:
            raise ValueError("'instruction' is set twice: keep rollout.instruction and remove the one at the top")
        return {**others, "rollout": {**rollout, "instruction": values["instruction"]}}

    @model_serializer(mode="wrap")
    def _with_instruction_at_the_top(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write ``instruction`` at the top, so that runs and builds of older versions have the same settings."""
        values = serialise(self)
        rollout = values.get("rollout")
        if not isinstance(rollout, dict) or "instruction" not in rollout:
            return values
        others = {key: value for key, value in rollout.items() if key != "instruction"}
        return {**values, "rollout": others, "instruction": rollout["instruction"]}

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.sft is None and not self.warm_up.steps and not self.rl.steps:
            raise ValueError("nothing is trained: set warm_up.steps or rl.steps to at least 1, or set sft")
        return self

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        """The check of :func:`~skillweave.tasks.with_tools.load_agent`, made before a build begins."""
        misfit = tools_misfit(self.task, self.tools or ToolSettings())
        if misfit is not None:
            raise ValueError(misfit)
        return self
