"""The settings of an audit of RLVR data."""

from __future__ import annotations

from pydantic import Field

from skillweave.config import Config


class DataAuditConfig(Config):
    """What is audited, with what it is compared, and how many false alarms are allowed."""

    data: str = Field(description="a data file, a folder of data files, or a folder of a saved Hugging Face dataset")
    out: str = Field(description="the folder that is written: records.jsonl, report.json, report.html")
    clean: str | None = Field(
        default=None,
        description="records that are known to be clean and are like the data otherwise; the thresholds then follow "
        "from them, not from the shipped reference",
    )
    fpr: float = Field(
        default=0.01, gt=0, lt=1, description="share of clean records that may be flagged by mistake, on average"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="names of columns, where the usual ones are not found: `prompt`, `answer`, `id`, `source` -> the "
        "name in the data; dots go into objects (`reward_model.ground_truth`)",
    )
    split: str = Field(default="train", description="the split of a Hugging Face dataset folder that has several")
    workers: int | None = Field(
        default=None, ge=1, description="processes that read and score (default: one for each core)"
    )
    shown: int = Field(default=50, ge=0, description="so many of the most suspicious records are on the page")
