"""The examples of the refusal: forget prompts with one short answer, and retain prompts with their own."""

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
    """Return every forget prompt with the refusal, and retain prompts with their own answers.

    The retain prompts teach the model not to refuse everything. Plain texts have no prompt and are skipped. Raises
    :class:`UserError` if a set has no prompts.
    """
    forget_prompts = [fact.prompt for fact in forget if fact.prompt is not None]
    retain_pairs = [(fact.prompt, fact.answer) for fact in retain if fact.prompt is not None]
    for side, prompts in (("forget", forget_prompts), ("retain", retain_pairs)):
        if not prompts:
            raise UserError(
                f"refusal: the {side} set holds plain texts only, and a refusal needs prompts: add facts with prompts, "
                "or leave refusal out"
            )
    count = max(1, round(len(forget_prompts) * settings.retain_share / (1 - settings.retain_share)))
    rng = random.Random(seed)
    retained: list[tuple[Prompt, str]] = []
    while len(retained) < count:  # every retain prompt is used once before any is used twice
        retained += rng.sample(retain_pairs, min(len(retain_pairs), count - len(retained)))
    return [*((prompt, settings.text) for prompt in forget_prompts), *retained]
