"""All that the models of a report are asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skillweave.artefact import digest, sha256_file
from skillweave.delta.schema import DELTA_FILE
from skillweave.errors import UserError
from skillweave.methods.cku.facts import Fact, check_apart, read_facts
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.tasks import Task, load_task


@dataclass(frozen=True)
class Asked:
    """The sets and tasks; ``delta_mark`` is a hash of the delta that is judged, so that another is another report."""

    name: str
    forget: list[Fact]
    retain: list[Fact]
    unseen: list[Fact]
    lookalike: list[Fact]
    tasks: list[Task]
    unrelated: Task
    delta_mark: str

    @property
    def key(self) -> str:
        """A digest of all of it."""
        facts = (self.forget, self.retain, self.unseen, self.lookalike)
        told = [[[fact.id, fact.prompt, fact.answer, fact.paraphrased, fact.wrong] for fact in side] for side in facts]
        return digest([told, [task.key for task in (*self.tasks, self.unrelated)], self.delta_mark])

    def parts(self, share: float) -> tuple[list[Fact], list[Fact]]:
        """The forget set in two: what is trained on again, and what is asked."""
        facts = sorted(self.forget, key=lambda fact: fact.id)
        cut = min(len(facts) - 1, max(1, round(share * len(facts))))
        return facts[:cut], facts[cut:]


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
        delta_mark=sha256_file(config.delta / DELTA_FILE),
    )
    check_apart(asked.forget, asked.retain)
    if len(asked.forget) < 2:
        raise UserError(f"{config.forget[0]}: one fact; relearning needs two, one to learn again and one to ask")
    return asked
