"""The models of a report, each made when it is first asked for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from skillweave.base import resolve
from skillweave.delta import Delta, is_delta, write_tuned
from skillweave.methods.cku.report.asked import Asked
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.training.policy import Policy
from skillweave.methods.training.run import Run

BEFORE, AFTER, REFERENCE = "before", "after", "reference"


class Models:
    """The base, the base with the delta and, where one is named, the reference, by arm.

    What a delta makes of the base is written once, in float32, so that all is read and trained from files: in a
    narrower dtype part of what changed would be lost.
    """

    def __init__(self, run: Run[ReportConfig, Asked]) -> None:
        self._run = run
        self._folder = run.folder / "models"
        self.arms = [BEFORE, AFTER] if run.config.reference is None else [BEFORE, AFTER, REFERENCE]

    def policy(self, arm: str) -> Policy:
        """Where a model lies."""
        run, reference = self._run, self._run.config.reference
        if arm == AFTER:
            return self._tuned(arm, run.config.delta)
        if arm == REFERENCE and reference is not None:
            if is_delta(Path(reference)):
                return self._tuned(arm, Path(reference))
            return replace(run.policy, base=resolve(reference))
        return run.policy

    def open(self, policy: Policy) -> Any:
        """A model to be read and asked, in float32 (with ``bf16`` it is read under autocast)."""
        from skillweave.methods.training.head import install_scoring_head

        model = policy.open_to_sample(self._run.config.model_copy(update={"bf16": False}))
        install_scoring_head(model)
        return model

    def close(self) -> None:
        """Free the disk of what was written."""
        if self._run.processes.first:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _tuned(self, arm: str, delta: Path) -> Policy:
        target = self._folder / arm

        def write() -> None:
            if not target.is_dir():
                write_tuned(self._run.base.path, Delta.from_pretrained(delta), target, dtype="float32")

        self._run.processes.from_first(write)
        return replace(self._run.policy, base=target)
