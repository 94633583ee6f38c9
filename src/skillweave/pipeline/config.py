"""``weave.yaml``: one readable file from which a whole weave is built."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from skillweave.config import ByteSize, Config, read_config
from skillweave.errors import UserError
from skillweave.methods import get_method
from skillweave.methods.cku.config import CkuConfig
from skillweave.methods.training.settings import ModelSettings
from skillweave.pack import check_name
from skillweave.skillzip import ZipConfig
from skillweave.skillzip.codecs import get_codec
from skillweave.tasks import TaskSpec
from skillweave.tasks.with_tools import ToolUse

UNLEARNING = "cku"
"""The method behind ``unlearn:``, which takes knowledge out of the base."""


class SkillConfig(Config):
    """One skill: what it must do, and where its delta comes from."""

    task: TaskSpec = Field(description="Prompts and verifier; the specialist learns its train split.")
    method: str = Field("specialise", description="How the delta is made: a registered method.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The method's own settings.")
    pack: str | None = Field(None, description="A skillpack folder that already exists, instead of a method.")
    tools: ToolUse | None = Field(None, description="What a ready pack may call while it answers, and how it is asked.")
    zip: dict[str, Any] = Field(default_factory=dict, description="Settings of the zip for this skill alone.")

    @field_validator("method")
    @classmethod
    def _makes_a_skill(cls, method: str) -> str:
        if method == UNLEARNING:
            raise ValueError(
                f"{UNLEARNING} takes knowledge out of the base and makes no skill: write its settings under "
                "`unlearn:`, beside `skills:`, and every skill inherits it"
            )
        return method

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.pack is not None and (self.settings or self.zip):
            raise ValueError("a skill with `pack` is taken as it is: remove `settings` and `zip`")
        if self.pack is None and self.tools is not None:
            raise ValueError("`tools` goes with `pack`: a method has its tools among its `settings`")
        if "task" in self.settings:
            raise ValueError("the task stands beside `settings`, not in it")
        return self


class EvaluationConfig(Config):
    """How the report's figures are made."""

    limit: int | None = Field(None, ge=1, description="Test prompts of each skill (all of the split by default).")
    batch_size: int = Field(32, ge=1)
    max_new_tokens: int = Field(64, ge=1)


class RouterConfig(Config):
    """How the router is fitted: see :func:`skillweave.weave.fit_router`."""

    prompts: int = Field(128, ge=2, description="Train prompts of each skill that it learns from.")
    layer: int | None = Field(None, ge=0, description="The layer whose hidden states it reads (half way up).")
    miss: float = Field(0.01, ge=0, lt=1, description="Share of a skill's own prompts that may fall to the base.")


class WeaveConfig(Config):
    """The whole of ``weave.yaml``."""

    name: str = "weave"
    base: str = Field(description="A Hugging Face folder, a hub id, a GGUF file or bundled:smollm2.")
    dtype: str = Field(
        "auto",
        description="Of the base's weights in memory, in the build and when served. auto: the files' own where the "
        "device computes it, else float32, or the files' own again where float32 would not fit the budget.",
    )
    device: str | None = None
    budget: ByteSize | None = Field(None, description="Most bytes in memory, base and packs together.")
    seed: int = 0
    unlearn: CkuConfig | None = Field(None, description="What to take out of the base before any skill is grown on it.")
    skills: dict[str, SkillConfig] = Field(min_length=1)
    zip: ZipConfig = Field(default_factory=ZipConfig)
    router: RouterConfig = Field(default_factory=RouterConfig)
    score: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @field_validator("skills")
    @classmethod
    def _plain_names(cls, skills: dict[str, SkillConfig]) -> dict[str, SkillConfig]:
        for name in skills:
            try:
                check_name(name)
            except UserError as error:
                raise ValueError(str(error)) from error
        return skills

    def unlearning(self) -> CkuConfig | None:
        """The unlearning, if any; its seed is the weave's unless it names its own."""
        if self.unlearn is None or "seed" in self.unlearn.model_fields_set:
            return self.unlearn
        return self.unlearn.model_copy(update={"seed": self.seed})

    def method_config(self, skill: str) -> ModelSettings:
        """The config of the skill's method, checked: its settings plus the task and the seed of the weave."""
        chosen = self.skills[skill]
        method = get_method(chosen.method)
        values = {"task": chosen.task.model_dump(mode="json"), "seed": self.seed, **chosen.settings}
        try:
            return read_config(method.config, values)
        except UserError as error:
            raise UserError(f"skills.{skill}.settings: {error}") from error

    def tool_use(self, skill: str) -> ToolUse | None:
        """How a skill is asked that calls tools: as its method says, or its own ``tools``."""
        chosen = self.skills[skill]
        if chosen.pack is not None:
            return chosen.tools
        return self.method_config(skill).tool_use

    def zip_config(self, skill: str) -> ZipConfig:
        """The zip of one skill: the weave's own, with the skill's settings laid over it."""
        own = self.skills[skill].zip
        common = self.zip.model_dump(mode="json", exclude_defaults=True)
        if "ratio" in own or "budget" in own:
            common = {key: value for key, value in common.items() if key not in ("ratio", "budget")}
        try:
            chosen = read_config(ZipConfig, {**common, **own})
            get_codec(chosen.codec)  # a mistyped name, told now and not after the training
        except UserError as error:
            raise UserError(f"skills.{skill}.zip: {error}") from error
        return chosen


def read_weave_config(source: str, overrides: list[str] | None = None) -> WeaveConfig:
    """Read ``weave.yaml`` and check all of it, every method's settings included, before any work begins."""
    config = read_config(WeaveConfig, source, overrides or [])
    for skill in config.skills:
        if config.skills[skill].pack is None:
            config.method_config(skill)
            config.zip_config(skill)
    return config
