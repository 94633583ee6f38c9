"""A report on a task before anything is trained on it: rows, lengths, and whether its gold answers are right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from skillweave.base.chat import Answer, Message, answer_ids, as_messages, prompt_ids, prompt_text, tools_of
from skillweave.base.ends import plain_answer_warning
from skillweave.base.template import has_template
from skillweave.base.thoughts import opened_thought
from skillweave.errors import UserError
from skillweave.progress import say_once
from skillweave.tasks.builtin import BUILTINS
from skillweave.tasks.calls import calls_text
from skillweave.tasks.spec import BuiltinSpec, ReasoningGymSpec
from skillweave.tasks.task import SPLITS, Entry, Task

_MEASURED = 500
"""The most rows whose length is measured."""
_JUDGED = {"code": 50, "reasoning-gym": 100}
"""The most rows whose gold answer is judged, for slow verifiers; ``_MEASURED`` for all others."""
_FAILURES_SHOWN = 5


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts, in tokens or characters: the median, the 95% quantile, the longest."""

    median: int
    p95: int
    longest: int


@dataclass(frozen=True)
class GoldFailure:
    """A gold answer that its own verifier does not call right, and the place of its row."""

    where: str
    answer: str
    score: float


@dataclass(frozen=True)
class TaskReport:
    """What is known about a task before it is trained on.

    * ``rows``, ``prompts``: how many each split has
    * ``read``: rows in the file (0 for a generator); ``duplicates`` of them were dropped
    * ``several``: prompts with more than one row
    * ``with_tools``, ``with_rejected``: rows with tools, rows with a rejected answer
    * ``measured``: rows whose lengths ``prompt`` and ``answer`` were measured, in ``unit``; ``beyond`` of them are
      longer than ``limit`` (prompt and answer together)
    * ``judged``: gold answers that were given to the verifier; ``failed`` of them did not score 1, the first of which
      are ``failures``
    * ``unanswered``: rows without a gold answer
    * ``problems``: what would go wrong in training; ``notes``: what is good to know
    * ``example``: one row as the model sees it, in pieces of text; each says whether it has a loss
    """

    name: str
    verifier: str
    rows: dict[str, int]
    prompts: dict[str, int]
    read: int
    duplicates: int
    several: int
    with_tools: int
    with_rejected: int
    unit: Literal["tokens", "characters"]
    measured: int
    prompt: Lengths
    answer: Lengths | None
    limit: int | None
    beyond: int
    judged: int
    failed: int
    failures: list[GoldFailure]
    unanswered: int
    notes: list[str]
    problems: list[str]
    example: list[tuple[str, bool]]


def check_task(task: Task, tokenizer: Any = None, max_length: int | None = None) -> TaskReport:
    """The report on a task. Lengths are in tokens of ``tokenizer``, or in characters without one.

    Of a large task an evenly spaced sample is measured and judged; the report says how many rows that was. Raises
    :class:`UserError`, with the place of the row, if the tokenizer's chat template cannot render a row.
    """
    entries = [entry for name in SPLITS for entry in task.splits.get(name, ())]
    measured = _sample(entries, _MEASURED)
    sizes = [_sizes(entry, tokenizer) for entry in measured]
    whole = [before + (after or 0) for before, after in sizes]
    answers = [after for _, after in sizes if after is not None]
    beyond = 0 if max_length is None else sum(size > max_length for size in whole)
    verifier = _verifier(task)
    gold = _sample([entry for entry in entries if entry.answer is not None], _JUDGED.get(verifier, _MEASURED))
    failures = [failure for entry in gold if (failure := _failure(task, entry)) is not None]
    shown = next((entry for entry in entries if entry.answer is not None), entries[0])
    return TaskReport(
        name=task.name,
        verifier=verifier,
        rows=task.sizes,
        prompts={name: len(task.distinct(name)) if size else 0 for name, size in task.sizes.items()},
        read=task.rows,
        duplicates=task.duplicates,
        several=_several(entries),
        with_tools=sum(bool(tools_of(entry.prompt)) for entry in entries),
        with_rejected=sum("rejected" in entry.metadata for entry in entries),
        unit="characters" if tokenizer is None else "tokens",
        measured=len(measured),
        prompt=_lengths([before for before, _ in sizes]),
        answer=_lengths(answers) if answers else None,
        limit=max_length,
        beyond=beyond,
        judged=len(gold),
        failed=len(failures),
        failures=failures[:_FAILURES_SHOWN],
        unanswered=sum(entry.answer is None for entry in entries),
        notes=[*task.notes, *_answer_notes(tokenizer)],
        problems=[
            *_problems(len(gold), failures, len(measured), beyond, max_length),
            *_thought_problems(tokenizer, measured),
        ],
        example=_rendered(shown, tokenizer),
    )


def summary(report: TaskReport) -> list[str]:
    """The report in two to five lines; problems come last."""
    rows = ", ".join(f"{count} {name}" for name, count in report.rows.items())
    kinds = {"with tools": report.with_tools, "with a rejected answer": report.with_rejected}
    special = "".join(f", {count} rows {what}" for what, count in kinds.items() if count)
    lines = [f"{rows} rows{special}; verifier {report.verifier}", lengths_line(report)]
    if report.judged and not report.failed:
        lines.append(gold_line(report))
    return [*lines, *(f"warning: {problem}" for problem in report.problems)]


def lengths_line(report: TaskReport) -> str:
    """One line: how long prompts and answers are, and how many rows are too long."""
    parts = [
        f"{what} {lengths.median} {report.unit} (95% within {lengths.p95}, longest {lengths.longest})"
        for what, lengths in (("prompts", report.prompt), ("answers", report.answer))
        if lengths is not None
    ]
    line = f"lengths (median): {', '.join(parts)}"
    if report.limit is not None:
        count = f"{report.beyond} of {report.measured} rows ({report.beyond / report.measured:.0%})"
        line += f"; {count if report.beyond else f'none of {report.measured} rows'} beyond {report.limit} tokens"
    return line + _sampled(report.measured, sum(report.rows.values()))


def gold_line(report: TaskReport) -> str:
    """One line: how many gold answers pass their own verifier."""
    answered = sum(report.rows.values()) - report.unanswered
    passed = f"{report.judged - report.failed} of {report.judged} gold answers pass the verifier"
    missing = f"; {report.unanswered} rows have none" if report.unanswered else ""
    return passed + _sampled(report.judged, answered) + missing


def _sampled(count: int, whole: int) -> str:
    return f" (an even sample: {count} of {whole} rows)" if count < whole else ""


def check_before(task: Task, tokenizer: Any, max_length: int | None) -> None:
    """Print the report in a few lines on standard error, before the task is trained on."""
    for line in [*summary(check_task(task, tokenizer, max_length)), *_answer_notes(tokenizer)]:
        say_once(f"task {task.name}: {line}")


def _answer_notes(tokenizer: Any) -> list[str]:
    note = None if tokenizer is None else plain_answer_warning(tokenizer)
    return [note] if note else []


def _sample(entries: Sequence[Entry], count: int) -> list[Entry]:
    """At most ``count`` entries, evenly spaced."""
    if len(entries) <= count:
        return list(entries)
    return [entries[at * len(entries) // count] for at in range(count)]


def _sizes(entry: Entry, tokenizer: Any) -> tuple[int, int | None]:
    """The length of the prompt, and of the answer if there is one."""
    if tokenizer is None:
        characters = sum(len(message["content"]) for message in as_messages(entry.prompt))
        return characters, None if entry.answer is None else len(_text(entry.answer))
    try:
        tokens = len(prompt_ids(tokenizer, entry.prompt))
        return tokens, None if entry.answer is None else len(answer_ids(tokenizer, entry.answer, entry.prompt))
    except UserError as error:
        raise UserError(f"{entry.metadata.get('where', 'the task')}: {error}") from error


def _lengths(sizes: Sequence[int]) -> Lengths:
    median, p95 = np.quantile(sizes, (0.5, 0.95), method="higher")
    return Lengths(int(median), int(p95), max(sizes))


def _failure(task: Task, entry: Entry) -> GoldFailure | None:
    assert entry.answer is not None
    text = _text(entry.answer)
    score = task.score(text, entry)
    return None if score == 1 else GoldFailure(str(entry.metadata.get("where", "the generator")), text, score)


def _text(answer: Answer) -> str:
    """The answer as a text for a verifier; calls of a message are written in our own call format."""
    return answer if isinstance(answer, str) else _message_text(answer)


def _message_text(message: Message) -> str:
    return calls_text(message) if "tool_calls" in message else message["content"]


def _several(entries: Sequence[Entry]) -> int:
    return sum(count > 1 for count in Counter(entry.prompt_id for entry in entries).values())


def _verifier(task: Task) -> str:
    if isinstance(task.spec, ReasoningGymSpec):
        return "reasoning-gym"
    return BUILTINS[task.spec.name].verifier if isinstance(task.spec, BuiltinSpec) else str(task.spec.verifier)


def _problems(judged: int, failures: Sequence[GoldFailure], measured: int, beyond: int, limit: int | None) -> list[str]:
    problems = []
    if failures:
        first = failures[0]
        problems.append(
            f"{len(failures)} of {judged} gold answers fail their own verifier, so a right answer would count as "
            f"wrong; the first: {first.where}, score {first.score:.2g}: {first.answer!r:.80}. Correct them, or choose "
            "another verifier or other options"
        )
    if beyond == measured:
        problems.append(f"every row is longer than {limit} tokens: nothing can be learnt from the task")
    return problems


def _thought_problems(tokenizer: Any, measured: Sequence[Entry]) -> list[str]:
    """The problem that answers open a thought that the prompt has opened already; [] if there is none."""
    if not has_template(tokenizer):
        return []
    opening = opened_thought(prompt_text(tokenizer, measured[0].prompt))
    answers = [entry.answer for entry in measured if isinstance(entry.answer, str)]
    count = sum(answer.lstrip().startswith(opening) for answer in answers) if opening else 0
    if not count:
        return []
    return [
        f"{count} of {len(answers)} gold answers begin with {opening!r}, with which the chat template ends the prompt: "
        "the model would learn to write it twice. Remove it from the beginning of the answers, and leave the mark that "
        "closes the thought"
    ]


def _rendered(entry: Entry, tokenizer: Any) -> list[tuple[str, bool]]:
    """The row as the model sees it, in pieces; each comes with whether it has a loss."""
    answer = entry.answer
    if tokenizer is None:
        prompt = "".join(f"{message['role']}: {_message_text(message)}\n" for message in as_messages(entry.prompt))
        tools = tools_of(entry.prompt)
        if tools:
            prompt = f"tools: {json.dumps(tools, ensure_ascii=False)}\n{prompt}"
        return [(f"{prompt}assistant: ", False), *([] if answer is None else [(_text(answer), True)])]
    pieces = [(prompt_ids(tokenizer, entry.prompt), False)]
    if answer is not None:
        pieces.append((answer_ids(tokenizer, answer, entry.prompt), True))
    return [(tokenizer.decode(ids, clean_up_tokenization_spaces=False), has_loss) for ids, has_loss in pieces]
