"""Samples answers from the policy, scores them with the task's verifier and stores them in a JSONL file."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from skillweave.base.batching import by_length
from skillweave.base.chat import Prompt, answer_text, as_json
from skillweave.base.generate import Sampling, encode_prompts, generate_answers
from skillweave.errors import UserError
from skillweave.methods.training.order import stage_seed
from skillweave.methods.training.pieces import Work, in_pieces, read_lines
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import SamplingSettings
from skillweave.tasks import Entry, Task


@dataclass(frozen=True)
class Answered:
    """One prompt with the answers that were sampled for it.

    - ``gold``: the known right answer, or None.
    - ``scores``: the score of each answer, in [0, 1].
    - ``ended``: for each answer, whether the model ended it; False if it was cut off.
    """

    id: str
    prompt: Prompt
    gold: str | None
    answers: list[str]
    scores: list[float]
    ended: list[bool]


def choose_entries(entries: Sequence[Entry], count: int, number: int, seed: int) -> list[Entry]:
    """The entries of round ``number`` (from 0): the next ``count`` of a seeded shuffle, which starts again at its end.

    Raises :class:`UserError` if there are no entries, or if two have the same id.
    """
    if not entries:
        raise UserError("the task's train split is empty: it needs at least one prompt")
    twice = [name for name, times in Counter(entry.id for entry in entries).items() if times > 1]
    if twice:
        raise UserError(f"the task's train split has the id '{twice[0]}' twice: give every entry an id of its own")
    order = random.Random(seed).sample(range(len(entries)), len(entries))
    count = min(count, len(entries))
    return [entries[order[(number * count + at) % len(entries)]] for at in range(count)]


def read_samples(path: Path) -> list[Answered]:
    """Read what :func:`sample_answers` wrote."""
    return [Answered(**row) for row in read_lines(path)]


def mean_score(samples: Sequence[Answered]) -> float:
    """The mean score of all answers; 0 if there are none."""
    scores = [score for row in samples for score in row.scores]
    return sum(scores) / len(scores) if scores else 0.0


def sample_answers(
    open_policy: Callable[[], Any],
    tokenizer: Any,
    task: Task,
    entries: Sequence[Entry],
    settings: SamplingSettings,
    path: Path,
    *,
    samples: int,
    name: str,
    seed: int,
    processes: Processes,
    greedy: bool = False,
) -> list[Answered]:
    """Sample and score ``samples`` answers for each entry, and store them in ``path`` (JSONL).

    Prompts of similar length are answered together, and each batch has its own seed. A resumed run, or one with another
    number of processes, therefore gets the same answers (:func:`in_pieces`). ``open_policy()`` returns the model; it is
    called only if answers are missing. ``name`` is the stage, for the seeds and the progress bar.
    """

    def prepare() -> tuple[list[list[int]], Work]:
        model = open_policy()
        lengths = [len(ids) for ids in encode_prompts(model, tokenizer, [entry.prompt for entry in entries])]
        temperature = 0.0 if greedy else settings.temperature
        sampling = Sampling(settings.max_new_tokens, temperature, settings.top_p, samples)

        def work(number: int, piece: Sequence[int]) -> list[dict[str, Any]]:
            seeded = replace(sampling, batch_size=len(piece) * samples, seed=stage_seed(seed, f"{name}/{number}"))
            return [asdict(row) for row in _answer(model, tokenizer, task, [entries[index] for index in piece], seeded)]

        return by_length(lengths, max(1, settings.sampling_batch_size // samples)), work

    rows = in_pieces(
        path,
        prepare,
        processes=processes,
        label=f"{name}: sampling",
        note=lambda rows: f"score {mean_score([Answered(**row) for row in rows]):.0%}",
    )
    return [Answered(**row) for row in rows]


def sample_policy(run: Run[Any, Task], folder: Path, entries: Sequence[Entry]) -> list[Answered]:
    """Sample answers from the policy of ``run``, as :func:`sample_answers` does, with the settings and seed of the run.

    They are stored in ``folder/samples.jsonl``; the name of ``folder`` is that of the stage.
    """
    config = run.config
    return sample_answers(
        lambda: run.policy.open_to_sample(config),
        run.tokenizer,
        run.data,
        entries,
        config,
        folder / "samples.jsonl",
        samples=config.samples_per_prompt,
        name=folder.name,
        seed=config.seed,
        processes=run.processes,
    )


def _answer(model: Any, tokenizer: Any, task: Task, entries: list[Entry], sampling: Sampling) -> list[Answered]:
    generated = generate_answers(model, tokenizer, [entry.prompt for entry in entries], sampling)
    return [
        Answered(
            id=entry.id,
            prompt=as_json(entry.prompt),
            gold=None if entry.answer is None else answer_text(tokenizer, entry.answer, entry.prompt),
            answers=[answer.text for answer in answers],
            scores=[float(task.score(answer.text, entry)) for answer in answers],
            ended=[answer.ended for answer in answers],
        )
        for entry, answers in zip(entries, generated, strict=True)
    ]
