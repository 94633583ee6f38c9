"""Makes preference pairs from scored answers: pure functions, no model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skillweave.base.chat import Prompt, answer_text
from skillweave.methods.training.answers import Answered
from skillweave.tasks import Entry


@dataclass(frozen=True)
class Pair:
    """A good answer and a bad one to the same prompt.

    ``source`` says where the good answer comes from: ``own``, the policy; ``gold``, the task. With ``given`` both
    answers come from the task.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    source: Literal["own", "gold", "given"]


@dataclass(frozen=True)
class PairFigures:
    """Counts of a round's samples and of the pairs made from them.

    - ``cut_off``: answers that the model did not end. Their score counts in ``solve_rate``, but they are in no pair.
    - ``solve_rate``: the fraction of all answers that are good.
    - ``solved_prompts``: prompts with at least one good answer.
    - ``gold_pairs``: pairs whose good answer is the task's.
    """

    prompts: int
    answers: int
    cut_off: int
    solve_rate: float
    solved_prompts: int
    pairs: int
    gold_pairs: int
    prompts_without_pair: int


def is_good(score: float, threshold: float) -> bool:
    """Whether an answer with this score is good; with a score that is not a number it is not."""
    return score >= threshold


def solve_rate(samples: Sequence[Answered], threshold: float) -> float:
    """The fraction of all sampled answers that are good; 0 if there are none."""
    good = [is_good(score, threshold) for row in samples for score in row.scores]
    return sum(good) / len(good) if good else 0.0


def cut_off(samples: Sequence[Answered]) -> int:
    """How many answers were cut off before the model ended them."""
    return sum(not ended for row in samples for ended in row.ended)


def make_pairs(
    samples: Sequence[Answered],
    *,
    threshold: float = 0.5,
    max_pairs_per_prompt: int = 4,
    gold_as_chosen: bool = True,
    seed: int = 0,
) -> tuple[list[Pair], PairFigures]:
    """Pair good answers with bad ones, prompt by prompt, in the order of the prompts.

    - An answer that was cut off is not used. The model did not end it there, so it must not learn (or unlearn) that
      end, and nobody knows how the complete answer would have been scored [ours].
    - Answers that differ only in white space around them count as one.
    - A text that was scored both good and bad, by an inconsistent verifier, is not used.
    - A prompt has at most ``max_pairs_per_prompt`` pairs. No answer is reused until all others of its kind have been
      used.
    - If no complete sample is good and ``gold_as_chosen`` is set, the gold answer is the good one [ours], unless the
      verifier scored that very text as bad.
    """
    pairs: list[Pair] = []
    without_pair = 0
    for row in samples:
        of_prompt = _pairs_of(row, threshold, max_pairs_per_prompt, gold_as_chosen, seed)
        pairs.extend(of_prompt)
        without_pair += not of_prompt
    return pairs, PairFigures(
        prompts=len(samples),
        answers=sum(len(row.answers) for row in samples),
        cut_off=cut_off(samples),
        solve_rate=solve_rate(samples, threshold),
        solved_prompts=sum(any(is_good(score, threshold) for score in row.scores) for row in samples),
        pairs=len(pairs),
        gold_pairs=sum(pair.source == "gold" for pair in pairs),
        prompts_without_pair=without_pair,
    )


def given_pairs(tokenizer: Any, entries: Sequence[Entry]) -> list[Pair]:
    """A pair for each entry that has a gold and a rejected answer, in the order of the entries."""
    return [
        Pair(
            entry.id,
            entry.prompt,
            answer_text(tokenizer, entry.answer, entry.prompt),
            answer_text(tokenizer, entry.metadata["rejected"], entry.prompt),
            "given",
        )
        for entry in entries
        if entry.answer is not None and "rejected" in entry.metadata
    ]


def _pairs_of(row: Answered, threshold: float, most: int, gold_as_chosen: bool, seed: int) -> list[Pair]:
    good: dict[str, str] = {}
    bad: dict[str, str] = {}
    for answer, score, ended in zip(row.answers, row.scores, row.ended, strict=True):
        if not ended:
            continue
        (good if is_good(score, threshold) else bad).setdefault(answer.strip(), answer)
    source: Literal["own", "gold"] = "own"
    if not good and gold_as_chosen and row.gold is not None:
        good, source = {row.gold.strip(): row.gold}, "gold"
    both = good.keys() & bad.keys()
    chosen = [text for key, text in good.items() if key not in both]
    rejected = [text for key, text in bad.items() if key not in both]
    if not chosen or not rejected:
        return []
    rng = random.Random(f"{seed}/{row.id}")
    rng.shuffle(chosen)
    rng.shuffle(rejected)
    # Walk along the diagonals of the table chosen x rejected: every answer is used before any answer is used again.
    # A walk comes back to its first cell after lcm(rows, columns) cells; one step aside starts the next diagonal, so
    # that no cell is visited twice.
    cells = len(chosen) * len(rejected)
    diagonal = math.lcm(len(chosen), len(rejected))
    visited = [(at % len(chosen), (at + at // diagonal) % len(rejected)) for at in range(min(most, cells))]
    return [Pair(row.id, row.prompt, chosen[good], rejected[bad], source) for good, bad in visited]
