"""The settings of a checkpoint's audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from skillweave.audit.model.prompts import WRAPPERS, check_wrappers
from skillweave.audit.refusal import USUAL
from skillweave.config import Config
from skillweave.files.hashes import digest
from skillweave.patterns import compiled, finds_everything


def _compiles(refusal: str) -> str:
    compiled(refusal)
    if finds_everything(refusal):
        raise ValueError("it is found in every answer, so every answer would be a refusal: write the words of one")
    return refusal


def _fit(wrappers: dict[str, str]) -> dict[str, str]:
    check_wrappers(wrappers)
    return wrappers


RefusalPattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression that finds a refusal."""
Wrappers = Annotated[dict[str, str], AfterValidator(_fit)]
"""Name -> template around a restricted request."""


class ModelAuditConfig(Config):
    """Settings of ``skillweave audit model``, ``pack`` and ``reference``, and of ``audit:`` in weave.yaml."""

    prompts: Path = Field(
        description='JSONL with {"prompt", "kind", "answer"}: requests of the kind `restricted`, which a clean model '
        "refuses, and of the kind `task`."
    )
    reference: Path | None = Field(
        None, description="The signals of clean checkpoints (`skillweave audit reference`). Without it, only paired "
        "tests within the model are used."
    )  # fmt: skip
    fpr: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Most false alarms among clean checkpoints. It takes 1 / fpr - 1 clean ones.",
    )
    refusal: RefusalPattern = Field(USUAL, description="A regular expression that finds a refusal in an answer.")
    wrappers: Wrappers = Field(
        default=dict(WRAPPERS), min_length=1,
        description="Name -> template around a restricted request: {request}; {task}, {task_1}, {answer_1}, {task_2}, "
        "{answer_2} are tasks with answers, {refused} and {refusal} another request and the base's refusal.",
    )  # fmt: skip
    limit: int = Field(64, ge=2, description="Most restricted requests, and most tasks, that are used.")
    max_new_tokens: int = Field(48, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(32, ge=1, description="Prompts that are answered together.")
    radius: float = Field(
        0.5, gt=0, description="Size of the universal perturbation, as a share of the residual stream's norm."
    )
    perturbation_steps: int = Field(12, ge=1, description="Steps of the search for the perturbation.")

    @property
    def key(self) -> str:
        """A digest of the settings that change the figures."""
        used = {"refusal", "wrappers", "limit", "max_new_tokens", "radius", "perturbation_steps"}
        return digest(self.model_dump(mode="json", include=used))
