"""Score one task for ``skillweave eval``, and make the record that is written of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base import Prompt, Sampling
from skillweave.engine import LocalEngine
from skillweave.tasks import Entry, Score, Task, evaluate
from skillweave.tasks.few_shot import ask_with, draw_examples
from skillweave.tools.conversation import OpenTools
from skillweave.weave import Reply
from skillweave.weave.journal import ReplyJournal


@dataclass(frozen=True)
class Examples:
    """The solved examples before each prompt of a task. ``drawn`` may have one more, as a spare."""

    count: int
    drawn: list[Entry]

    @classmethod
    def of(cls, task: Task, count: int, seed: int) -> Examples:
        """``count`` examples of the task's train split. Raises :class:`UserError` if there are too few."""
        return cls(count, draw_examples(task, count, seed) if count else [])

    def ask(self, entry: Entry) -> Prompt:
        """The entry's prompt with the examples before it."""
        return ask_with(self.drawn, self.count)(entry) if self.count else entry.prompt


@dataclass(frozen=True)
class Rated:
    """A task, its score, and the scored replies: ``score.samples`` replies for each entry, in the order of entries."""

    given: str
    task: Task
    score: Score
    replies: Sequence[Reply]
    examples: Examples

    @property
    def cut_off(self) -> int:
        """The number of replies that ran into a limit before the model ended them."""
        return sum(reply.ended != "answer" for reply in self.replies)

    def record(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The record for the JSON file: figures, the examples that were shown, and every answer."""
        size = self.score.samples
        drawn = [self.replies[at : at + size] for at in range(0, len(self.replies), size)]
        examples = [{"prompt": one.prompt, "answer": one.answer} for one in self.examples.drawn[: self.examples.count]]
        figures = {**self.score.figures, "cut_off": self.cut_off / len(self.replies)}
        answers = [self._answer(number, said) for number, said in enumerate(drawn)]
        return {"task": self.given, **asked, **figures, "examples": examples, "answers": answers}

    def _answer(self, number: int, said: Sequence[Reply]) -> dict[str, Any]:
        entry, values = self.score.entries[number], self.score.sampled[number]
        told = [
            {"answer": reply.text, "score": value, **reply.record} for reply, value in zip(said, values, strict=True)
        ]
        asked = {"id": entry.id, "prompt": entry.prompt, "gold": entry.answer}
        if len(told) == 1:
            return {**asked, **told[0]}
        chosen = said[self.score.voted[number]].answer
        return {**asked, "score": self.score.scores[number], "majority": chosen, "samples": told}


def asked_of(task: Task, examples: Examples, split: str, limit: int | None) -> Any:
    """What a task is to a model, JSON-like: its prompts and its settings, without those of the verifier.

    A verifier of the user's own may fail after hours of answers: they are still there when it is fixed.
    """
    prompts = [examples.ask(entry) for entry in task.distinct(split)[:limit]]
    return [task.spec.model_dump(mode="json", exclude={"verifier", "options", "thoughts"}), prompts]


def rate(
    engine: LocalEngine,
    pack: str | None,
    given: str,
    task: Task,
    tools: OpenTools | None,
    examples: Examples,
    sampling: Sampling,
    journal: ReplyJournal | None,
    *,
    split: str,
    limit: int | None,
    samples: int,
) -> Rated:
    """Answer a task's prompts and score the answers; ``given`` is the task as the user wrote it.

    ``journal``: as in ``Weave.answer``.
    """
    replies: list[Reply] = []

    def texts(prompts: list[Prompt]) -> list[str | None]:
        replies[:] = engine.weave.generate(
            prompts,
            engine.pack_named(pack),
            sampling,
            tools=tools,
            journal=journal,
            label=f"answer {task.name}",
        )
        return [reply.answer for reply in replies]

    score = evaluate(task, texts, split=split, limit=limit, samples=samples, ask=examples.ask)
    return Rated(given, task, score, replies, examples)
