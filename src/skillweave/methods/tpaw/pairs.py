"""Makes the pairs of a round from generations; faulty pairs are counted, and by default left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base.chat import Prompt, answer_ids
from skillweave.methods.tpaw.config import FAULTS, Fault
from skillweave.methods.training.answers import Answered
from skillweave.methods.training.preferences import make_pairs

PromptAnswer = tuple[Prompt, str]
"""A prompt and one answer to it."""


@dataclass(frozen=True)
class SelfPlayPair:
    """The data's answer to a prompt, and what a player generated in its place.

    ``faults`` say why the generation is a bad opponent of the target; they are empty for a good pair.
    """

    id: str
    prompt: Prompt
    target: str
    generated: str
    faults: tuple[Fault, ...] = ()


def pairs_of_samples(tokenizer: Any, samples: Sequence[Answered], length_ratio: float) -> list[SelfPlayPair]:
    """One pair per sampled answer, in order, with its faults; lengths are counted in tokens of ``tokenizer``."""
    return [
        SelfPlayPair(row.id, row.prompt, row.gold, text, faults_of(tokenizer, row.gold, text, ended, length_ratio))
        for row in samples
        if row.gold is not None
        for text, ended in zip(row.answers, row.ended, strict=True)
    ]


def pairs_by_verifier(samples: Sequence[Answered], seed: int) -> list[SelfPlayPair]:
    """Pairs of a right and a wrong answer, as the verifier scored them.

    The right one is the player's own, or the gold answer if the player has none; it is the target.
    """
    most = max((len(row.answers) for row in samples), default=1)
    pairs, _ = make_pairs(samples, max_pairs_per_prompt=most, gold_as_chosen=True, seed=seed)
    return [SelfPlayPair(pair.id, pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


def faults_of(tokenizer: Any, target: str, generated: str, ended: bool, length_ratio: float) -> tuple[Fault, ...]:
    """What is wrong with a generation as an opponent of the target, in the order of :data:`FAULTS`."""
    shorter, longer = sorted(len(answer_ids(tokenizer, text)) for text in (target, generated))
    applies: dict[Fault, bool] = {
        "equal": generated.strip() == target.strip(),
        "empty": not generated.strip(),
        "truncated": not ended,
        "length": longer > length_ratio * shorter,
    }
    return tuple(fault for fault in FAULTS if applies[fault])


def without_faults(pairs: Sequence[SelfPlayPair], drop: Collection[Fault]) -> list[SelfPlayPair]:
    """The pairs that have none of the faults in ``drop``; of equal pairs the first stays.

    A truncated generation is always left out: it would be trained with an end token that its player did not write.
    """
    unique: dict[tuple[str, str, str], SelfPlayPair] = {}
    for pair in pairs:
        if not set(pair.faults) & {*drop, "truncated"}:
            unique.setdefault((pair.id, pair.target, pair.generated), pair)
    return list(unique.values())


def count_faults(pairs: Sequence[SelfPlayPair]) -> dict[str, int]:
    """How many pairs have each fault; a pair may have several."""
    counts = Counter(fault for pair in pairs for fault in pair.faults)
    return {fault: counts[fault] for fault in FAULTS}
