"""The settings of an audit of rollouts."""

from __future__ import annotations

from pydantic import Field

from skillweave.config import Config


class RolloutAuditConfig(Config):
    """How a log of rollouts is audited."""

    log: str = Field(description="the log: a JSONL, JSON or Parquet file, or a folder of them")
    clean: str | None = Field(default=None, description="log of a clean run of the same set-up, for the calibration")
    refusal: list[str] = Field(
        default=[],
        description="texts of refusals, such as `<refuse>`, or `re:PATTERN`; none means the usual English refusals",
    )
    fpr: float = Field(default=0.01, gt=0, lt=0.5, description="false-positive rate of the threshold")
    k: int = Field(default=3, ge=1, description="nearest-neighbour distances that are averaged for `rigid`")
    suspects: int = Field(default=5, ge=1, description="prompts with the highest scores whose parts are left out")
    samples: int = Field(default=8, ge=1, description="completions of each shortened prompt of a suspect")
