"""The policy answers prompts, the task's verifier judges, a JSONL file remembers."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillweave.artefact import digest, write_text
from skillweave.base.chat import Prompt, as_messages
from skillweave.base.generate import Sampling, encode_prompts, generate_answers
from skillweave.errors import UserError
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import SamplingSettings
from skillweave.progress import bar

if TYPE_CHECKING:
    from skillweave.tasks import Entry, Task


@dataclass(frozen=True)
class Answered:
    """One prompt, the answers drawn for it, the score of each in [0, 1], and whether each ended by itself.

    ``gold`` is the known right answer, where there is one.
    """

    id: str
    prompt: Prompt
    gold: str | None
    answers: list[str]
    scores: list[float]
    ended: list[bool]


def stage_seed(seed: int, name: str) -> int:
    """A seed of its own for each stage, the same on every machine and number of processes."""
    return int(digest([seed, name])[:7], 16)


def choose_entries(entries: Sequence[Entry], count: int, number: int, seed: int) -> list[Entry]:
    """The prompts of round ``number`` (from 0): the next ``count`` of a seeded shuffle, begun anew when used up."""
    if not entries:
        raise UserError("the task's train split is empty: it needs at least one prompt")
    twice = [name for name, times in Counter(entry.id for entry in entries).items() if times > 1]
    if twice:
        raise UserError(f"the task's train split has the id '{twice[0]}' twice: give every entry an id of its own")
    order = random.Random(seed).sample(range(len(entries)), len(entries))
    count = min(count, len(entries))
    return [entries[order[(number * count + at) % len(entries)]] for at in range(count)]


def read_samples(path: Path) -> list[Answered]:
    """What :func:`sample_answers` wrote."""
    return [Answered(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def mean_score(samples: Sequence[Answered]) -> float:
    """The mean score of all answers; 0 where there are none."""
    scores = [score for row in samples for score in row.scores]
    return sum(scores) / len(scores) if scores else 0.0


def sample_answers(
    open_policy: Callable[[], tuple[Any, Any]], task: Task, entries: Sequence[Entry], settings: SamplingSettings,
    folder: Path, *, samples: int, name: str, seed: int, processes: Processes, greedy: bool = False,
) -> list[Answered]:  # fmt: skip
    """Draw ``samples`` judged answers for each entry, kept in ``folder/samples.jsonl``.

    A file that is there is read, not made anew. Prompts are answered in batches of like length; each batch has a seed
    of its own and is written when done, so a killed run goes on at the next one, and several processes share the
    batches and yet draw the same answers as one. ``open_policy()`` -> (model, tokenizer) is called if need be.
    """
    whole = folder / "samples.jsonl"
    if not processes.from_first(whole.exists):
        drawn = Sampling(settings.max_new_tokens, 0.0 if greedy else settings.temperature, settings.top_p, samples)
        size = max(1, settings.sampling_batch_size // samples)
        _in_batches(open_policy, task, entries, drawn, size, folder / "batches", name, seed, processes)
        processes.wait()
        if processes.first:
            rows = {row.id: row for path in (folder / "batches").glob("*.jsonl") for row in read_samples(path)}
            write_text(whole, _lines([rows[entry.id] for entry in entries]))
            shutil.rmtree(folder / "batches", ignore_errors=True)
        processes.wait()
    return read_samples(whole)


def _in_batches(
    open_policy: Callable[[], tuple[Any, Any]], task: Task, entries: Sequence[Entry], sampling: Sampling, size: int,
    folder: Path, name: str, seed: int, processes: Processes,
) -> None:  # fmt: skip
    model, tokenizer = open_policy()
    lengths = [len(ids) for ids in encode_prompts(model, tokenizer, [entry.prompt for entry in entries])]
    by_length = sorted(range(len(entries)), key=lambda index: -lengths[index])
    batches = [by_length[at : at + size] for at in range(0, len(by_length), size)]
    mine = [number for number in range(len(batches)) if number % processes.world == processes.rank]
    shown = bar(f"{name}: sampling", len(mine)) if processes.first else contextlib.nullcontext(lambda *a, **k: None)
    seen: list[Answered] = []
    with shown as advance:
        for number in mine:
            path = folder / f"{number:06d}.jsonl"
            if not path.exists():
                rows = [entries[index] for index in batches[number]]
                one = replace(
                    sampling, batch_size=len(rows) * sampling.samples, seed=stage_seed(seed, f"{name}/{number}")
                )
                write_text(path, _lines(_answer(model, tokenizer, task, rows, one)))
            seen.extend(read_samples(path))
            advance(1, note=f"score {mean_score(seen):.0%}")


def _answer(model: Any, tokenizer: Any, task: Task, entries: list[Entry], sampling: Sampling) -> list[Answered]:
    drawn = generate_answers(model, tokenizer, [entry.prompt for entry in entries], sampling)
    return [
        Answered(
            id=entry.id,
            prompt=entry.prompt if isinstance(entry.prompt, str) else as_messages(entry.prompt),
            gold=entry.answer,
            answers=[answer.text for answer in answers],
            scores=[float(task.score(answer.text, entry)) for answer in answers],
            ended=[answer.ended for answer in answers],
        )
        for entry, answers in zip(entries, drawn, strict=True)
    ]


def _lines(rows: Sequence[Answered]) -> str:
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
