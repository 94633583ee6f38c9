"""The settings of ``weave.yaml``, the one file from which a whole weave is built."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from skillweave.audit.model.config import ModelAuditConfig
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
    """One skill: its task, and the method that makes its delta or the ready pack that is used."""

    task: TaskSpec = Field(description="Prompts and their verifier. The specialist learns the train split.")
    method: str = Field("specialise", description="The method that makes the delta: specialise, tpaw or e3tir.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The settings of the method, without its task.")
    pack: str | None = Field(None, description="A skillpack folder that already exists, in place of a method.")
    tools: ToolUse | None = Field(
        None, description="The tools that a ready pack may call, and the limits of its conversations."
    )
    zip: dict[str, Any] = Field(
        default_factory=dict, description="Zip settings for this skill only; they replace those of the weave's `zip`."
    )

    @field_validator("method")
    @classmethod
    def _makes_a_skill(cls, method: str) -> str:
        if method == UNLEARNING:
            raise ValueError(
                f"{UNLEARNING} takes knowledge out of the base and makes no skill: write its settings under "
                "`unlearn:`, beside `skills:`, and every skill inherits it"
            )
        try:
            return get_method(method).name
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.pack is not None and (
            self.settings or self.zip or self.method != type(self).model_fields["method"].default
        ):
            raise ValueError("a skill with `pack` is taken as it is: remove `method`, `settings` and `zip`")
        if self.pack is None and self.tools is not None:
            raise ValueError("`tools` belongs to `pack`: with a method, write the tools in its `settings`")
        if "task" in self.settings:
            raise ValueError("write `task` beside `settings`, not in it")
        return self


class EvaluationConfig(Config):
    """How the scores in the report are measured."""

    limit: int | None = Field(None, ge=1, description="Test prompts of each skill (default: the whole test split).")
    batch_size: int = Field(32, ge=1, description="Prompts that are answered together.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")


class RouterConfig(Config):
    """How the router is fitted (:func:`skillweave.weave.fit_router`)."""

    prompts: int = Field(128, ge=2, description="Train prompts of each skill that the router learns from.")
    layer: int | None = Field(
        None, ge=0, description="The layer whose hidden states the router reads (default: a third of the way up)."
    )
    stray: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Share of the bundled prompts for the base that may go to a skill, and of a skill's prompts that "
        "may go to another one if their own is absent.",
    )
    miss: float = Field(
        0.01, ge=0, lt=1, description="Share of the skills' own prompts that may go to the base to keep `stray` low."
    )


class WeaveConfig(Config):
    """All settings of ``weave.yaml``."""

    name: str = Field("weave", description="The name of the weave, shown in its report.")
    base: str = Field(description="A Hugging Face folder, a hub id, a GGUF file or bundled:smollm2.")
    dtype: str = Field(
        "auto",
        description="The dtype of the base's weights in memory, in the build and when the weave is served. auto: the "
        "dtype of the files if the device computes it, else float32; if float32 would not fit the budget, the dtype of "
        "the files.",
    )
    backbone: Literal["int8"] | None = Field(
        None,
        description="int8: the weave is served, and scored, with the base's linear layers in int8. Skills are made in "
        "dtype as always (default: dtype).",
    )
    device: str | None = Field(
        None, description="Where to compute: cpu, cuda, cuda:1 (default: the first GPU, or the CPU)."
    )
    budget: ByteSize | None = Field(None, description="Most bytes in memory, for base and packs together.")
    seed: int = Field(0, description="The seed of all random draws: of methods, unlearning and router.")
    unlearn: CkuConfig | None = Field(
        None, description="What to unlearn from the base before skills are made on it: settings of the cku method."
    )
    skills: dict[str, SkillConfig] = Field(
        min_length=1, description="The skills by name; a name is also a pack's name."
    )
    zip: ZipConfig = Field(default_factory=ZipConfig, description="How every delta is zipped.")
    pack_budget: ByteSize | None = Field(
        None,
        gt=0,
        description="Most bytes on disk, for the files of all packs together. They are split over the skills so that "
        "the packs lose the least, by measurement; then no `zip` has `ratio` or `budget` (default: each pack has the "
        "limit of its `zip`).",
    )
    audit: ModelAuditConfig | None = Field(
        None,
        description="How each pack is audited for a backdoor before the weave is put together (default: not at all). A "
        "pack that raises an alarm is held back.",
    )
    router: RouterConfig = Field(default_factory=RouterConfig, description="How the router is fitted.")
    score: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="How the report's scores are measured."
    )

    @field_validator("skills")
    @classmethod
    def _plain_names(cls, skills: dict[str, SkillConfig]) -> dict[str, SkillConfig]:
        for name in skills:
            try:
                check_name(name)
            except UserError as error:
                raise ValueError(str(error)) from error
        return skills

    @model_validator(mode="before")
    @classmethod
    def _one_limit(cls, values: Any) -> Any:
        # Before the check of `zip`, which fills in the ratio that it has without a limit.
        if isinstance(values, dict) and values.get("pack_budget") is not None:
            _without_limit("zip", values.get("zip"))
        return values

    @model_validator(mode="after")
    def _one_limit_for_each_skill(self) -> Self:
        if self.pack_budget is not None:
            for name, skill in self.skills.items():
                _without_limit(f"skills.{name}.zip", skill.zip)
        return self

    def unlearning(self) -> CkuConfig | None:
        """The settings of the unlearning, or None. The seed is the weave's unless ``unlearn`` has its own."""
        if self.unlearn is None or "seed" in self.unlearn.model_fields_set:
            return self.unlearn
        return self.unlearn.model_copy(update={"seed": self.seed})

    def method_config(self, skill: str) -> ModelSettings:
        """The checked settings of a skill's method: the skill's ``settings``, its task, and the seed of the weave."""
        chosen = self.skills[skill]
        method = get_method(chosen.method)
        values = {"task": chosen.task.model_dump(mode="json"), "seed": self.seed, **chosen.settings}
        return read_config(method.config, values, called=f"skills.{skill}.settings")

    def tool_use(self, skill: str) -> ToolUse | None:
        """The tool settings of a skill, from its method's settings or its own ``tools``; None if it uses no tools."""
        chosen = self.skills[skill]
        if chosen.pack is not None:
            return chosen.tools
        return self.method_config(skill).tool_use

    def zip_config(self, skill: str) -> ZipConfig:
        """The zip settings of one skill: those of the weave, with the skill's own settings on top.

        Packs are refined on the backbone that serves the weave, unless ``refine.backbone`` names another.
        """
        own = self.skills[skill].zip
        common = self.zip.model_dump(mode="json", exclude_defaults=True)
        if "ratio" in own or "budget" in own:
            common = {key: value for key, value in common.items() if key not in ("ratio", "budget")}
        try:
            chosen = read_config(ZipConfig, {**common, **own})
            get_codec(chosen.codec)  # finds a mistyped name now, not after the training
        except UserError as error:
            raise UserError(f"skills.{skill}.zip: {error}") from error
        if chosen.refine is None or chosen.refine.backbone is not None or self.backbone is None:
            return chosen
        served = chosen.refine.model_copy(update={"backbone": self.backbone})
        return chosen.model_copy(update={"refine": served})


def _without_limit(place: str, settings: Any) -> None:
    """Raise ValueError if the zip settings at a place of weave.yaml have a limit, which ``pack_budget`` excludes."""
    for key in ("ratio", "budget"):
        if isinstance(settings, dict) and settings.get(key) is not None:
            raise ValueError(
                f"`pack_budget` is the limit of all packs together, and `{place}.{key}` limits one: remove one of them"
            )


def read_weave_config(source: str, overrides: list[str] | None = None) -> WeaveConfig:
    """The settings of ``weave.yaml``, all checked before any work begins, also those of every method."""
    config = read_config(WeaveConfig, source, overrides or [])
    try:
        for skill in config.skills:
            if config.skills[skill].pack is None:
                config.method_config(skill)
                config.zip_config(skill)
    except UserError as error:
        raise UserError(f"{source}{', with --set' if overrides else ''}: {error}") from error
    return config
