"""A short, consistent refusal on what was forgotten, so that the model does not make something up."""

from __future__ import annotations

import random
from collections.abc import Sequence

from skillweave.base import Prompt
from skillweave.errors import UserError
from skillweave.methods.cku.config import RefusalSettings
from skillweave.methods.cku.knowledge.facts import Fact


def refusal_examples(
    forget: Sequence[Fact], retain: Sequence[Fact], settings: RefusalSettings, seed: int
) -> list[tuple[Prompt, str]]:
    """Every forget prompt with the refusal, and retain prompts with their own answers, so that it is not said to all.

    Plain texts are no prompts and are passed over. Raises :class:`UserError` where a side has no prompts.
    """
    asked = [fact.prompt for fact in forget if fact.prompt is not None]
    kept = [(fact.prompt, fact.answer) for fact in retain if fact.prompt is not None]
    for side, found in (("forget", asked), ("retain", kept)):
        if not found:
            raise UserError(f"refusal: the {side} set holds plain texts only; a refusal answers prompts")
    count = max(1, round(len(asked) * settings.retain_share / (1 - settings.retain_share)))
    rng = random.Random(seed)
    beside: list[tuple[Prompt, str]] = []
    while len(beside) < count:  # every retain prompt once before any twice
        beside += rng.sample(kept, min(len(kept), count - len(beside)))
    return [*((prompt, settings.text) for prompt in asked), *beside]
