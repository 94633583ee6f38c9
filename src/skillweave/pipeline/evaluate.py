"""Scores for a build: who answers, on which skill, kept with every answer so that a figure can be traced."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skillweave.artefact import write_json, write_text
from skillweave.base import Prompt, Sampling
from skillweave.base.chat import as_messages
from skillweave.files.hashes import digest
from skillweave.files.read import read_json, read_json_lines
from skillweave.progress import console
from skillweave.tasks import Task, evaluate
from skillweave.tasks.with_tools import ToolSettings, ToolUse, agent_of
from skillweave.terminal import printable
from skillweave.tools.conversation import OpenTools
from skillweave.weave import Reply, Weave, background_prompts


def _background() -> tuple[list[str], list[str]]:
    """The everyday prompts in two parts: what the router learns from, and what it is then shown."""
    prompts = background_prompts()
    return [prompt for index, prompt in enumerate(prompts) if index % 4], prompts[::4]


BACKGROUND = _background()

_SHOWN = 200  # characters of a text in an example

AnswerFunction = Callable[[list[Prompt]], Sequence[Reply]]


def answers(weave: Weave, pack: str | None, task: Task, use: ToolUse | None, sampling: Sampling) -> AnswerFunction:
    """A function that answers the prompts of ``task`` with a weave, and with its tools if ``use`` is given.

    ``pack``: see :meth:`Weave.generate`.
    """

    def answer(prompts: list[Prompt]) -> Sequence[Reply]:
        if use is None:
            return weave.generate(prompts, pack, sampling, label="answer")
        with agent_of(task, use.tools).toolbox as toolbox:
            return weave.generate(prompts, pack, sampling, tools=OpenTools(toolbox, use), label="answer")

    return answer


def tools_key(tokenizer: Any, task: Task, use: ToolUse) -> str:
    """A digest of what the tools are: their schemas, the code and the texts that they are made of.

    Raises :class:`UserError` where they cannot be opened, or the base of ``tokenizer`` cannot be told of them.
    """
    with agent_of(task, use.tools).toolbox as toolbox:
        use.call_format(tokenizer, toolbox)
        return digest([toolbox.schemas, (use.tools or ToolSettings()).digests])


def score_once(folder: Path, task: Task, answer: AnswerFunction, *, limit: int | None) -> None:
    """Score ``answer`` on the task's test split; write ``score.json`` and ``answers.jsonl`` into ``folder``."""
    replies: list[Reply] = []

    def texts(prompts: list[Prompt]) -> list[str | None]:
        replies[:] = answer(prompts)
        return [reply.answer for reply in replies]

    score = evaluate(task, texts, split="test", limit=limit)
    lines = [
        {"id": entry.id, "prompt": entry.prompt, "gold": entry.answer, "answer": r.text, "pack": r.pack, "score": value}
        | r.record
        for entry, r, value in zip(score.entries, replies, score.scores, strict=True)
    ]
    write_text(folder / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_json(folder / "score.json", {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n})


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """Every prompt with its answer and score, as :func:`score_once` wrote them."""
    return [row for _, row in read_json_lines(folder / "answers.jsonl")]


def read_packs(folder: Path) -> list[str | None]:
    """Which pack gave each answer of :func:`score_once`; None is the plain base."""
    return [row["pack"] for row in read_answers(folder)]


def show_example(base: Path, specialist: Path) -> None:
    """Print a test prompt with both answers: the first that the specialist solves and the base does not.

    Where there is none it is the first prompt. Both folders are those of :func:`score_once`, on the same prompts.
    """
    both = list(zip(read_answers(base), read_answers(specialist), strict=True))
    before, after = next((pair for pair in both if pair[0]["score"] < 1 <= pair[1]["score"]), both[0])
    asked = as_messages(before["prompt"])[-1]["content"]
    for title, text in (("asked", asked), ("base", before["answer"]), ("specialist", after["answer"])):
        line = printable(" ".join(str(text).split()))
        console.print(f"  {title:<10} {line[:_SHOWN]}{'...' * (len(line) > _SHOWN)}", soft_wrap=True)


def read_score(folder: Path) -> dict[str, Any]:
    """What :func:`score_once` wrote."""
    return read_json(folder / "score.json")
