"""The policy answers prompts, the task's verifier judges, a JSONL file remembers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillweave.base.batching import by_length
from skillweave.base.chat import Prompt, answer_text, as_json
from skillweave.base.generate import Sampling, encode_prompts, generate_answers
from skillweave.errors import UserError
from skillweave.methods.training.order import stage_seed
from skillweave.methods.training.pieces import Work, in_pieces, read_lines
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import SamplingSettings

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
    return [Answered(**row) for row in read_lines(path)]


def mean_score(samples: Sequence[Answered]) -> float:
    """The mean score of all answers; 0 where there are none."""
    scores = [score for row in samples for score in row.scores]
    return sum(scores) / len(scores) if scores else 0.0


def sample_answers(
    open_policy: Callable[[], Any], tokenizer: Any, task: Task, entries: Sequence[Entry], settings: SamplingSettings,
    path: Path, *, samples: int, name: str, seed: int, processes: Processes, greedy: bool = False,
) -> list[Answered]:  # fmt: skip
    """Draw ``samples`` judged answers for each entry, kept in ``path`` (JSONL).

    Prompts are answered in batches of like length, each with a seed of its own: resumed, and shared by processes, as
    :func:`in_pieces` says, to the same answers. ``open_policy()`` gives the model, and is called if need be.
    """

    def prepare() -> tuple[list[list[int]], Work]:
        model = open_policy()
        lengths = [len(ids) for ids in encode_prompts(model, tokenizer, [entry.prompt for entry in entries])]
        drawn = Sampling(settings.max_new_tokens, 0.0 if greedy else settings.temperature, settings.top_p, samples)

        def work(number: int, piece: Sequence[int]) -> list[dict[str, Any]]:
            one = replace(drawn, batch_size=len(piece) * samples, seed=stage_seed(seed, f"{name}/{number}"))
            return [asdict(row) for row in _answer(model, tokenizer, task, [entries[index] for index in piece], one)]

        return by_length(lengths, max(1, settings.sampling_batch_size // samples)), work

    rows = in_pieces(
        path, prepare, processes=processes, label=f"{name}: sampling",
        note=lambda seen: f"score {mean_score([Answered(**row) for row in seen]):.0%}",
    )  # fmt: skip
    return [Answered(**row) for row in rows]


def _answer(model: Any, tokenizer: Any, task: Task, entries: list[Entry], sampling: Sampling) -> list[Answered]:
    drawn = generate_answers(model, tokenizer, [entry.prompt for entry in entries], sampling)
    return [
        Answered(
            id=entry.id,
            prompt=as_json(entry.prompt),
            gold=None if entry.answer is None else answer_text(tokenizer, entry.answer, entry.prompt),
            answers=[answer.text for answer in answers],
            scores=[float(task.score(answer.text, entry)) for answer in answers],
            ended=[answer.ended for answer in answers],
        )
        for entry, answers in zip(entries, drawn, strict=True)
    ]
