"""What can be set when an unlearning is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from skillweave.config import Ratio
from skillweave.methods.cku.config import Files
from skillweave.methods.training.settings import ModelSettings, TrainingSettings
from skillweave.tasks import TaskSpec
from skillweave.tasks.spec import BuiltinSpec


class RelearnSettings(TrainingSettings):
    """The fine-tuning that tries to bring the knowledge back."""

    steps: int | None = Field(default=20, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=8, ge=1)
    share: float = Field(default=0.5, gt=0, lt=1, description="of the forget set is trained on, the rest is asked")
    unrelated: int = Field(default=10, ge=1, description="examples of the probe that knows nothing of the forget set")


class ReportConfig(ModelSettings):
    """Settings of ``skillweave cku report``: a model before and after, and three tries to bring back what went.

    The settings of the model are those of the relearning (in full, by default, as an attacker would).
    """

    delta: Path = Field(description="the delta that unlearnt")
    forget: Files = Field(description="JSONL: what was to go")
    retain: Files = Field(description="JSONL: what was to stay")
    unseen: Files | None = Field(default=None, description="JSONL: facts of the same kind never taught")
    lookalike: Files | None = Field(
        default=None, description="JSONL: harmless questions in the words of the forget set"
    )
    reference: str | None = Field(
        default=None, description="a model that never saw the forget set: a delta folder on the base, or a base"
    )
    tasks: tuple[TaskSpec, ...] = Field(default=(), description="what else the model must still be able to do")
    task_limit: int = Field(default=100, ge=1, description="most test prompts of each task")
    unrelated_task: TaskSpec = Field(
        default_factory=lambda: BuiltinSpec(source="builtin", name="sort_numbers"),
        description="whose first train examples are the unrelated ones",
    )
    refusals: tuple[str, ...] = Field(
        default=("I can't", "I cannot", "I'm sorry", "I am sorry"), description="how an answer begins that refuses"
    )
    questions: int = Field(default=64, ge=1, description="most prompts of a set that are answered, to count refusals")
    relearn: RelearnSettings = RelearnSettings()
    rounding: tuple[Literal[4, 8], ...] = (8, 4)
    group: int = Field(default=64, ge=1, description="weights that share a scale when they are rounded")
    zip: tuple[Ratio, ...] = Field(
        default=(1 / 16, 1 / 8, 1 / 4), description="zips that are tried in turn, until one brings nothing back"
    )
    max_new_tokens: int = Field(default=32, ge=1)
    batch_size: int = Field(default=32, ge=1)
