"""The inputs of a report: the sets and tasks to judge by, and the models that are judged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skillweave.base import fingerprint, resolve
from skillweave.delta import Delta, is_delta, write_tuned
from skillweave.delta.schema import DELTA_FILE
from skillweave.errors import UserError
from skillweave.files.hashes import digest, sha256_file
from skillweave.methods.cku.knowledge.facts import Fact, check_disjoint, read_facts
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.training.head import install_scoring_head
from skillweave.methods.training.policy import Policy
from skillweave.methods.training.run import Run
from skillweave.tasks import Task, load_task

BEFORE, AFTER, REFERENCE = "before", "after", "reference"
"""The arms of a report: the base, the base with the delta, and a model that never saw the forget set."""


@dataclass(frozen=True)
class ReportData:
    """The sets and tasks of a report."""

    name: str
    forget: list[Fact]
    retain: list[Fact]
    unseen: list[Fact]
    lookalike: list[Fact]
    tasks: list[Task]
    unrelated: Task
    model_hashes: tuple[str, ...]
    """Hashes of the judged models: a report on other models has another ``key``"""

    @property
    def key(self) -> str:
        """A digest of the sets, the tasks and the models."""
        sides = (self.forget, self.retain, self.unseen, self.lookalike)
        facts = [[[fact.id, fact.prompt, fact.answer, fact.paraphrased, fact.wrong] for fact in side] for side in sides]
        return digest([facts, [task.key for task in (*self.tasks, self.unrelated)], self.model_hashes])

    def split_forget(self, share: float) -> tuple[list[Fact], list[Fact]]:
        """Return the forget set in two parts: the part to train on again, and the part to read the model on."""
        facts = sorted(self.forget, key=lambda fact: fact.id)
        cut = min(len(facts) - 1, max(1, round(share * len(facts))))
        return facts[:cut], facts[cut:]


def read_report_data(config: ReportConfig) -> ReportData:
    """Read all files. Raises :class:`UserError` if they do not fit, or if a set is too small to judge by."""
    data = ReportData(
        name=Path(config.forget[0]).stem,
        forget=read_facts(config.forget),
        retain=read_facts(config.retain),
        unseen=read_facts(config.unseen or []),
        lookalike=read_facts(config.lookalike or []),
        tasks=[load_task(spec) for spec in config.tasks],
        unrelated=load_task(config.unrelated_task),
        model_hashes=tuple(_model_hash(ref) for ref in (config.delta, config.reference) if ref is not None),
    )
    for one, other in (("forget", "retain"), ("forget", "unseen"), ("retain", "unseen"), ("forget", "lookalike")):
        check_disjoint(getattr(data, one), getattr(data, other), one, other)
    if len(data.forget) < 2:
        raise UserError(
            f"{config.forget[0]}: holds one fact, but relearning needs two: one to train on again and one to ask"
        )
    return data


def _model_hash(ref: str | Path) -> str:
    """The hash of a delta folder's manifest, or the fingerprint of a model."""
    return sha256_file(Path(ref) / DELTA_FILE) if is_delta(Path(ref)) else fingerprint(resolve(ref))


class ReportModels:
    """The models of a report, by arm: the base, the base with the delta and, if one is named, the reference.

    A base with a delta is written to a file in float32 when it is first used, and read and trained from there. In a
    narrower dtype a part of the change would be lost.
    """

    def __init__(self, run: Run[ReportConfig, ReportData]) -> None:
        self._run = run
        self._folder = run.folder / "models"
        self.arms = [BEFORE, AFTER] if run.config.reference is None else [BEFORE, AFTER, REFERENCE]

    def policy(self, arm: str) -> Policy:
        """Return the files of an arm's model."""
        run, reference = self._run, self._run.config.reference
        if arm == AFTER:
            return self._tuned(arm, run.config.delta)
        if arm == REFERENCE and reference is not None:
            if is_delta(Path(reference)):
                return self._tuned(arm, Path(reference))
            return replace(run.policy, base=resolve(reference))
        return run.policy

    def delta(self, ref: Path) -> Delta:
        """Open a delta of the report. Raises :class:`UserError` if it is no longer the one of the beginning."""
        delta = Delta.from_pretrained(ref)
        if _model_hash(ref) not in self._run.data.model_hashes:
            raise UserError(f"{ref} was replaced while the report was made: run the same command again")
        return delta

    def open(self, policy: Policy) -> Any:
        """Open a model for readings and generation, in float32 (with ``bf16`` it runs under autocast)."""
        model = policy.open_to_sample(self._run.config.model_copy(update={"bf16": False}))
        install_scoring_head(model)
        return model

    def close(self) -> None:
        """Delete the files that were written."""
        if self._run.processes.first:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _tuned(self, arm: str, ref: Path) -> Policy:
        target = self._folder / arm

        def write() -> None:
            if not target.is_dir():
                write_tuned(self._run.base.path, self.delta(ref), target, dtype="float32")

        self._run.processes.from_first(write)
        return replace(self._run.policy, base=target)
