"""Scores for a build: who answers, on which skill, kept with every answer so that a figure can be traced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skillweave.artefact import read_json, write_json, write_text
from skillweave.base import Prompt
from skillweave.tasks import Task, evaluate

AnswerFunction = Callable[[list[Prompt]], list[str]]


def score_once(folder: Path, task: Task, answer: AnswerFunction, *, limit: int | None) -> None:
    """Score ``answer`` on the task's test split; write ``score.json`` and ``answers.jsonl`` into ``folder``."""
    score = evaluate(task, answer, split="test", limit=limit)
    entries = task.split("test")[: score.n]
    lines = [
        {"id": entry.id, "prompt": entry.prompt, "gold": entry.answer, "answer": text, "score": value}
        for entry, text, value in zip(entries, score.answers, score.scores, strict=True)
    ]
    write_text(folder / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_json(folder / "score.json", {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n})


def read_score(folder: Path) -> dict[str, Any]:
    """What :func:`score_once` wrote."""
    return read_json(folder / "score.json")
