"""The settings that methods share: of a training stage, of drawing answers, of the model that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from skillweave.config import Config
from skillweave.patterns import compiled
from skillweave.tasks.with_tools import ToolUse


class OptimiserSettings(Config):
    """How fast to train, and in what pieces."""

    learning_rate: float = Field(default=5e-5, gt=0, allow_inf_nan=False)
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="most examples in memory at once in one process; None: the whole share"
    )
    warmup: float = Field(default=0.1, ge=0, le=1, description="fraction of the steps the learning rate rises in")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, gt=0)


class TrainingSettings(OptimiserSettings):
    """How long to train. A step is one optimiser update on ``batch_size`` examples."""

    steps: int | None = Field(default=None, ge=1, description="optimiser steps; where given, it wins over epochs")
    epochs: int = Field(default=1, ge=1, description="passes over the examples")
    batch_size: int = Field(default=16, ge=1, description="examples a step, over all processes together")

    def steps_for(self, examples: int) -> int:
        """Optimiser steps for that many examples: ``steps`` where given, else whole batches covering ``epochs``."""
        return self.steps if self.steps is not None else max(1, -(-examples * self.epochs // self.batch_size))


class AnswerSettings(TrainingSettings):
    """Supervised training on known good answers, with looks at the loss on answers that it does not see.

    The held-out examples are of the task's calibration split, never of the test split. Without ``patience`` the looks
    change nothing: the weights of the last step are kept.
    """

    held_out: int = Field(
        default=16, ge=0, description="most examples of the calibration split that the loss is looked at; 0: no looks"
    )
    evaluate_every: int | None = Field(
        default=None, ge=1, description="steps between two looks; None: 10, or a twentieth of a long training"
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many looks without a lower held-out loss and keep the best weights; None: never",
    )

    def looks_every(self, steps: int) -> int:
        """Steps between two looks in a training of so many steps."""
        return self.evaluate_every or max(10, -(-steps // 20))

    @model_validator(mode="after")
    def _looks_at_something(self) -> Self:
        if self.patience is not None and self.held_out == 0:
            raise ValueError("patience needs a held-out loss: set held_out to at least 1")
        return self


class SupervisedSettings(AnswerSettings):
    """Supervised training on conversations, of which more than the last turn may bear loss."""

    turns: Literal["last", "all"] = Field(
        default="last", description="what bears loss: the answer, or all the assistant's turns of an example"
    )


class SamplingSettings(Config):
    """How the policy draws answers to learn from."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=64, ge=1)
    sampling_batch_size: int = Field(default=32, ge=1, description="answers generated at once in one process")


class LoraSettings(Config):
    """Low-rank adapters, for ``train: lora``."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    targets: str | list[str] = Field(default="all-linear", description="module names as PEFT takes them")


def _as_list(value: Any) -> Any:
    """``none`` and nothing are no service; a text is one."""
    if value is None or value == "none":
        return []
    return [value] if isinstance(value, str) else value


Reporters = Annotated[list[str], BeforeValidator(_as_list)]
"""Names of services as transformers has them; a single one may be written as a text."""


class ModelSettings(Config):
    """What of the base is trained, in which precision, and from which points a killed run goes on.

    ``may_change`` names settings that an unfinished run may be gone on with otherwise than it began.
    """

    may_change: ClassVar[frozenset[str]] = frozenset({"report_to"})

    seed: int = 0
    train: Literal["full", "lora"] = "full"
    trainable: str = Field(
        default="all", description="full: 'all', 'linear' (no embeddings, norms or head) or a regex on parameter names"
    )
    lora: LoraSettings = LoraSettings()
    max_length: int = Field(default=1024, ge=2, description="longer examples (prompt and answer, tokens) are left out")
    bf16: bool | Literal["auto"] = Field(
        default="auto",
        description="compute in bfloat16 (weights and optimiser: float32); auto: where the device does so natively",
    )
    gradient_checkpointing: bool = False
    save_every: int = Field(default=50, ge=1, description="steps between the points a killed run resumes from")
    report_to: Reporters = Field(
        default=[], description="where the log goes too: tensorboard, wandb, ... (one or a list); none: our files only"
    )

    @classmethod
    def in_current_form(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings with today's keys, for ``values`` that an older version may have written."""
        return values

    @property
    def tool_use(self) -> ToolUse | None:
        """The tool settings of the resulting skill, or None if it uses no tools."""
        return None

    @property
    def autocast(self) -> bool:
        """``bf16`` once :meth:`Run.begin` has decided what ``auto`` is; before that it is a ``ValueError``."""
        if self.bf16 == "auto":
            raise ValueError("bf16 is still 'auto': Run.begin decides it by the device")
        return self.bf16

    @field_validator("trainable")
    @classmethod
    def _a_regex(cls, value: str) -> str:
        try:
            compiled(value)
        except ValueError as error:
            raise ValueError(f"not 'all' or 'linear', and {error}") from error
        return value
