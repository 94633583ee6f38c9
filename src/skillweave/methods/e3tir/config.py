"""What can be set when an agent is warmed up with expert anchors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from skillweave.config import Config
from skillweave.methods.training.settings import AnswerSettings, ModelSettings, OptimiserSettings, TrainingSettings
from skillweave.tasks import TaskSpec
from skillweave.tasks.with_tools import ToolSettings, ToolUse, tools_misfit
from skillweave.tools.conversation import ConversationSettings

SCRIPTED: Literal["scripted"] = "scripted"
"""In place of a file of traces: what the task's own solver does."""


class RolloutSettings(ConversationSettings):
    """How conversations are held. [digest] 8192 tokens, 512 of them from a tool at a time, 4 calls."""

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)


class RewardSettings(Config):
    """What a conversation is worth: ``right`` times the verifier's score, and more or less for its manner.

    After Tool-Star [relative]: -1 for a bad format (no answer, or a call that could not be read), 0 for a wrong answer,
    1 for a right one, 0.1 more where several tools were used to get it right.
    """

    right: float = Field(default=1.0, allow_inf_nan=False)
    no_answer: float = Field(
        default=-1.0, le=0, allow_inf_nan=False, description="the conversation ended without an answer"
    )
    malformed: float = Field(
        default=-1.0, le=0, allow_inf_nan=False, description="it has a call that could not be read, or of no such tool"
    )
    several_tools: float = Field(
        default=0.0, allow_inf_nan=False, description="beside a right answer, for two different tools that gave results"
    )


class GroupSettings(OptimiserSettings):
    """One stage: optimiser steps, each on ``prompts`` groups of conversations.

    A group holds ``n`` that the policy begins itself and ``m`` that go on from the prefix of an expert.
    """

    steps: int = Field(ge=0, description="batches of rollouts; 0: the stage is left out")
    budget: int | None = Field(
        default=None,
        ge=1,
        description="tokens the policy may write in this stage: it ends after the step that spends it",
    )
    n: int = Field(ge=1, description="conversations of its own a prompt")
    m: int = Field(default=0, ge=0, description="conversations a prompt that go on from an expert's prefix")
    prompts: int = Field(default=16, ge=1, description="prompts a batch, over all processes together")
    updates: int = Field(default=1, ge=1, description="optimiser steps a batch; more than one: each on a part of it")
    learning_rate: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    micro_batch_size: int | None = Field(
        default=8, ge=1, description="most conversations trained on at once in one process; None: all"
    )
    warmup: float = Field(default=0.0, ge=0, le=1, description="fraction of the steps the learning rate rises in")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "constant_with_warmup"

    @property
    def training(self) -> TrainingSettings:
        """As every trainer of the house is told: an example is a conversation."""
        return TrainingSettings(
            steps=self.steps * self.updates,
            batch_size=self.prompts * self.size // self.updates,
            **self.model_dump(include=set(OptimiserSettings.model_fields)),
        )

    @property
    def size(self) -> int:
        """Conversations in a group."""
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
    """[digest] n 8, m 8, three anchors, 50 steps."""

    steps: int = Field(default=50, ge=0)
    n: int = Field(default=8, ge=1)
    m: int = Field(default=8, ge=0)


class RlSettings(GroupSettings):
    """Ordinary RL after the warm-up. [digest] n doubled, no expert, 250 steps."""

    steps: int = Field(default=250, ge=0)
    n: int = Field(default=16, ge=1)


class ExpertSettings(Config):
    """How expert traces enter a group. The readings that the paper leaves open have options.

    ``branch``: ``anchors`` (the positions of highest entropy), ``random`` ones, or ``whole``: the trace itself, to its
    end, in the group as LUFFY does. ``mixing``: in one ``group`` by their advantages, or as the plain ``sum`` of the RL
    loss and ``weight`` times the supervised loss on the expert's tokens (a control: one copy of the trace a group,
    whatever ``m``; nothing branches).
    """

    branch: Literal["anchors", "random", "whole"] = "anchors"
    k: int = Field(default=3, ge=1, description="anchors a trace")
    filter: bool = Field(default=True, description="the expert pool joins only if its best reward is higher")
    lam: float = Field(default=0.5, ge=0, le=1, description="share of the group's advantage in that of a branch")
    detach: bool = Field(default=True, description="no gradient through an expert prefix with a negative advantage")
    ratio: Literal["mixture", "shaped", "on_policy"] = Field(default="mixture", description="of an expert's tokens")
    mixing: Literal["group", "sum"] = "group"
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="of the supervised loss, for mixing: sum")


class E3tirConfig(ModelSettings):
    """Settings of ``e3tir``: supervised training where asked, the warm-up on three experiences, then RL."""

    task: TaskSpec = Field(description="prompts with a verifier")
    tools: ToolSettings | None = Field(default=None, description="what may be called; None: the task's own tools")
    experts: Path | Literal["scripted"] | None = Field(
        default=None, description="a JSONL file of traces, or 'scripted'; None: scripted where the task has a solver"
    )
    traces: int | None = Field(default=None, ge=1, description="most expert traces to use; None: all")

    sft: AnswerSettings | None = Field(default=None, description="supervised training on the traces, first")
    warm_up: WarmUpSettings = WarmUpSettings()
    rl: RlSettings = RlSettings()
    expert: ExpertSettings = ExpertSettings()
    reward: RewardSettings = RewardSettings()
    rollout: RolloutSettings = RolloutSettings()
    instruction: str | None = Field(
        default=None,
        description="what tells the model of its tools; None: its template, else ours; '': nothing (it knows them)",
    )
    clip: float = Field(default=0.2, gt=0, allow_inf_nan=False, description="how far from 1 a ratio still counts")

    evaluate_every: int = Field(default=10, ge=1, description="batches between two looks at the calibration split")
    evaluate_on: int = Field(default=64, ge=0, description="most prompts of it; 0: none")
    show_every: int = Field(default=25, ge=1, description="batches between two groups that are drawn as trees")

    @property
    def tool_use(self) -> ToolUse:
        """The tool settings to use when querying the trained model."""
        own = self.rollout.model_dump(include=set(ConversationSettings.model_fields) - {"instruction"})
        return ToolUse(tools=self.tools, instruction=self.instruction, **own)

    @property
    def asks_experts(self) -> dict[str, str]:
        """The settings by which a stage learns from an expert's traces, each with what would leave that out."""
        asks = {"sft": "sft to null"} if self.sft is not None else {}
        for name, stage in (("warm_up.m", self.warm_up), ("rl.m", self.rl)):
            if stage.steps and stage.m:
                asks[name] = f"{name} to 0"
        return asks

    @model_validator(mode="before")
    @classmethod
    def _tensorboard_by_its_old_name(cls, values: Any) -> Any:
        """``tensorboard: true`` was the setting before there was ``report_to``."""
        if not isinstance(values, dict) or not isinstance(values.get("tensorboard"), bool):
            return values
        others = {key: value for key, value in values.items() if key != "tensorboard"}
        return {"report_to": "tensorboard", **others} if values["tensorboard"] else others

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.sft is None and not self.warm_up.steps and not self.rl.steps:
            raise ValueError("nothing is trained: give warm_up or rl steps, or set sft")
        return self

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        """As :func:`load_agent` does, but before a build begins."""
        misfit = tools_misfit(self.task, self.tools or ToolSettings())
        if misfit is not None:
            raise ValueError(misfit)
        return self
