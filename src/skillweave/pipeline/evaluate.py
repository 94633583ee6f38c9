"""Score a model, a pack or a weave on a skill, and write every answer beside the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skillweave.artefact import write_json, write_json_lines
from skillweave.base import Prompt, Sampling
from skillweave.base.chat import as_messages
from skillweave.files.hashes import digest
from skillweave.files.read import read_json_lines, read_object
from skillweave.progress import console
from skillweave.tasks import Task, evaluate
from skillweave.tasks.with_tools import ToolSettings, ToolUse, agent_of
from skillweave.terminal import printable
from skillweave.tools.conversation import OpenTools
from skillweave.weave import Reply, Weave, background_prompts


def _background() -> tuple[list[str], list[str]]:
    """The prompts for the plain base in two parts: three quarters to fit the router on, one quarter to test it on."""
    prompts = background_prompts()
    return [prompt for index, prompt in enumerate(prompts) if index % 4], prompts[::4]


BACKGROUND = _background()

_EXAMPLE_LENGTH = 200  # most characters of a text that is printed as an example

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
    """A digest of the tools: of their schemas, and of the user's own files and the corpus that they use.

    Raises :class:`UserError` if the tools cannot be opened, or if ``tokenizer`` has no chat template to describe them.
    """
    with agent_of(task, use.tools).toolbox as toolbox:
        use.call_format(tokenizer, toolbox)
        return digest([toolbox.schemas, (use.tools or ToolSettings()).digests])


def score_once(folder: Path, task: Task, answer: AnswerFunction, *, limit: int | None) -> None:
    """Score ``answer`` on the task's test split, and write ``score.json`` and ``answers.jsonl`` to ``folder``.

    ``limit``: score at most this many prompts; None: all.
    """
    replies: list[Reply] = []

    def texts(prompts: list[Prompt]) -> list[str | None]:
        replies[:] = answer(prompts)
        return [reply.answer for reply in replies]

    score = evaluate(task, texts, split="test", limit=limit)
    lines = [
        {
            "id": entry.id,
            "prompt": entry.prompt,
            "gold": entry.answer,
            "answer": reply.text,
            "pack": reply.pack,
            "score": value,
            **reply.record,
        }
        for entry, reply, value in zip(score.entries, replies, score.scores, strict=True)
    ]
    write_json_lines(folder / "answers.jsonl", lines)
    write_json(folder / "score.json", {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n})


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """Every prompt with its answer and score, as :func:`score_once` wrote them."""
    return [row for _, row in read_json_lines(folder / "answers.jsonl")]


def read_packs(folder: Path) -> list[str | None]:
    """The pack that gave each answer of :func:`score_once`; None is the plain base."""
    return [row["pack"] for row in read_answers(folder)]


def show_example(base: Path, specialist: Path) -> None:
    """Print one test prompt with the answers of the base and the specialist.

    It is the first prompt that the specialist solves and the base does not, or the first of all if there is none. Both
    folders were written by :func:`score_once`, for the same prompts.
    """
    both = list(zip(read_answers(base), read_answers(specialist), strict=True))
    before, after = next((pair for pair in both if pair[0]["score"] < 1 <= pair[1]["score"]), both[0])
    prompt = as_messages(before["prompt"])[-1]["content"]
    for title, text in (("asked", prompt), ("base", before["answer"]), ("specialist", after["answer"])):
        line = printable(" ".join(str(text).split()))
        console.print(f"  {title:<10} {line[:_EXAMPLE_LENGTH]}{'...' * (len(line) > _EXAMPLE_LENGTH)}", soft_wrap=True)


def read_score(folder: Path) -> dict[str, Any]:
    """The ``score.json`` that :func:`score_once` wrote."""
    keys = dict.fromkeys(("mean", "low", "high", "n"), (int, float))
    return read_object(folder / "score.json", keys, f"Delete {folder} and build again, to score anew")
