"""Settings that the methods share: how to train, how to sample answers, and what of the model is trained."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from skillweave.config import Config
from skillweave.patterns import compiled
from skillweave.tasks.with_tools import ToolUse


class OptimiserSettings(Config):
    """Settings of the optimiser: the learning rate and its schedule, and the size of a micro-batch."""

    learning_rate: float = Field(
        default=5e-5, gt=0, allow_inf_nan=False, description="the highest learning rate of the schedule"
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="how many examples one process has in memory at once at most; None: all examples of this process "
        "at once",
    )
    warmup: float = Field(
        default=0.1, ge=0, le=1, description="the fraction of the steps in which the learning rate rises from 0"
    )
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        default="cosine", description="how the learning rate changes after the warmup"
    )
    weight_decay: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="the weight decay of the AdamW optimiser"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")


class TrainingSettings(OptimiserSettings):
    """Settings of a training: its length and its batch size.

    A step is one optimiser update on ``batch_size`` examples.
    """

    steps: int | None = Field(
        default=None, ge=1, description="the number of optimiser steps; if it is given, epochs is ignored"
    )
    epochs: int = Field(default=1, ge=1, description="the number of passes over the examples")
    batch_size: int = Field(
        default=16, ge=1, description="the number of examples in a step, over all processes together"
    )

    def steps_for(self, examples: int) -> int:
        """The number of optimiser steps for so many examples: ``steps`` if given, else enough for ``epochs``."""
        return self.steps if self.steps is not None else max(1, -(-examples * self.epochs // self.batch_size))


class AnswerSettings(TrainingSettings):
    """Settings of a supervised training on known good answers, which can be evaluated on held-out answers.

    The held-out examples come from the task's calibration split, never from its test split. Without ``patience`` the
    evaluations change nothing: the weights of the last step are kept.
    """

    held_out: int = Field(
        default=16,
        ge=0,
        description="how many examples of the calibration split the held-out loss is computed on at most; 0: no "
        "held-out loss",
    )
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="the number of steps between two evaluations; None: 10 steps, or a twentieth of the training if "
        "that is more",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many evaluations without a lower held-out loss, and keep the best weights; None: "
        "train to the end",
    )

    def evaluation_interval(self, steps: int) -> int:
        """The number of steps between two evaluations in a training of so many steps."""
        return self.evaluate_every or max(10, -(-steps // 20))

    @model_validator(mode="after")
    def _evaluates_if_patient(self) -> Self:
        if self.patience is not None and self.held_out == 0:
            raise ValueError("patience needs a held-out loss: set held_out to at least 1")
        return self


class SupervisedSettings(AnswerSettings):
    """Settings of a supervised training on conversations, in which more than the last turn may be trained on."""

    turns: Literal["last", "all"] = Field(
        default="last",
        description="which of the assistant's turns the loss is computed on: the answer alone, or all turns of the "
        "example",
    )


class SamplingSettings(Config):
    """Settings of the answers that the policy samples to learn from."""

    temperature: float = Field(default=1.0, gt=0, description="the sampling temperature")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the smallest set of tokens with this total probability"
    )
    max_new_tokens: int = Field(default=64, ge=1, description="an answer is cut off after so many tokens")
    sampling_batch_size: int = Field(
        default=32, ge=1, description="how many answers one process generates or scores at once"
    )


class LoraSettings(Config):
    """Settings of the low-rank adapters, for ``train: lora``."""

    rank: int = Field(default=16, ge=1, description="the rank of the adapters")
    alpha: int = Field(default=32, ge=1, description="the adapters are scaled by alpha / rank")
    targets: str | list[str] = Field(
        default="all-linear", description="which modules get an adapter: PEFT's target_modules"
    )


def _as_list(value: Any) -> Any:
    """A single name as a list of one; ``none`` and None as an empty list."""
    if value is None or value == "none":
        return []
    return [value] if isinstance(value, str) else value


Reporters = Annotated[list[str], BeforeValidator(_as_list)]
"""Names of reporting services as transformers knows them; a single name may be written without a list."""


class ModelSettings(Config):
    """Settings that every method has: what is trained, in which precision, and how often it is saved.

    ``may_change`` names the settings that may differ when an unfinished run is resumed.
    """

    may_change: ClassVar[frozenset[str]] = frozenset({"report_to"})

    seed: int = Field(default=0, description="the seed of everything random: the same seed gives the same weights")
    train: Literal["full", "lora"] = Field(
        default="full", description="full: train the base's own weights; lora: train low-rank adapters"
    )
    trainable: str = Field(
        default="all",
        description="for train: full, which parameters are trained: 'all', 'linear' (all but embeddings, norms and "
        "head) or a regex on their names",
    )
    lora: LoraSettings = Field(default=LoraSettings(), description="the adapters, for train: lora")
    max_length: int = Field(
        default=1024, ge=2, description="examples with more tokens (prompt and answer together) are left out"
    )
    bf16: bool | Literal["auto"] = Field(
        default="auto",
        description="compute in bfloat16 (weights and optimiser stay float32); auto: if the device does so natively",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="save memory by computing activations twice; a step takes longer"
    )
    save_every: int = Field(
        default=50, ge=1, description="the number of steps between two checkpoints that a killed run can resume from"
    )
    report_to: Reporters = Field(
        default=[],
        description="services that also get the training log, such as tensorboard or wandb (one name or a list); "
        "none: only the run's own files",
    )

    @property
    def tool_use(self) -> ToolUse | None:
        """The tool settings of the resulting skill, or None if it uses no tools."""
        return None

    @property
    def autocast(self) -> bool:
        """``bf16`` as a bool. Raises ``ValueError`` while it is still ``auto``.

        :meth:`~skillweave.methods.training.run.Run.begin` decides what ``auto`` means.
        """
        if self.bf16 == "auto":
            raise ValueError("bf16 is still 'auto': Run.begin decides it by the device")
        return self.bf16

    @field_validator("trainable")
    @classmethod
    def _is_a_regex(cls, value: str) -> str:
        try:
            compiled(value)
        except ValueError as error:
            raise ValueError(f"not 'all' or 'linear', and {error}") from error
        return value
