"""All that the models of a report are asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skillweave.base import fingerprint, resolve
from skillweave.delta.schema import DELTA_FILE, is_delta
from skillweave.errors import UserError
from skillweave.files.hashes import digest, sha256_file
from skillweave.methods.cku.knowledge.facts import Fact, check_apart, read_facts
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.tasks import Task, load_task


@dataclass(frozen=True)
class Asked:
    """The sets and tasks; ``marks`` are hashes of the models that are judged, so that others make another report."""

    name: str
    forget: list[Fact]
    retain: list[Fact]
    unseen: list[Fact]
    lookalike: list[Fact]
    tasks: list[Task]
    unrelated: Task
    marks: tuple[str, ...]

    @property
    def key(self) -> str:
        """A digest of all of it."""
        facts = (self.forget, self.retain, self.unseen, self.lookalike)
        told = [[[fact.id, fact.prompt, fact.answer, fact.paraphrased, fact.wrong] for fact in side] for side in facts]
        return digest([told, [task.key for task in (*self.tasks, self.unrelated)], self.marks])

    def parts(self, share: float) -> tuple[list[Fact], list[Fact]]:
        """The forget set in two: what is trained on again, and what is asked."""
        facts = sorted(self.forget, key=lambda fact: fact.id)
        cut = min(len(facts) - 1, max(1, round(share * len(facts))))
        return facts[:cut], facts[cut:]


def _mark(ref: str | Path) -> str:
    """What changes when a delta folder or a model does."""
    return sha256_file(Path(ref) / DELTA_FILE) if is_delta(Path(ref)) else fingerprint(resolve(ref))


def read_asked(config: ReportConfig) -> Asked:
    """Read all files. Raises :class:`UserError` where they do not fit, or a set is too small to be judged."""
    asked = Asked(
        name=Path(config.forget[0]).stem,
        forget=read_facts(config.forget),
        retain=read_facts(config.retain),
        unseen=read_facts(config.unseen or []),
        lookalike=read_facts(config.lookalike or []),
        tasks=[load_task(spec) for spec in config.tasks],
        unrelated=load_task(config.unrelated_task),
        marks=tuple(_mark(ref) for ref in (config.delta, config.reference) if ref is not None),
    )
    for one, other in (("forget", "retain"), ("forget", "unseen"), ("retain", "unseen"), ("forget", "lookalike")):
        check_apart(getattr(asked, one), getattr(asked, other), one, other)
    if len(asked.forget) < 2:
        raise UserError(f"{config.forget[0]}: one fact; relearning needs two, one to learn again and one to ask")
    return asked
