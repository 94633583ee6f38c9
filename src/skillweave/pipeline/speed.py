"""How fast a weave answers a mixed batch, beside a separate model for each skill."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from skillweave.base import Prompt, prompt_ids
from skillweave.base.batching import pad_left
from skillweave.progress import bar
from skillweave.weave import Weave

PER_SKILL = 4
NEW_TOKENS = 16
TURNS = 3
LONGEST_PROMPT = 256
"""Of longer prompts, the last so many tokens are read."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and attention mask, both int64 (rows, width), padded on the left."""


def compare_speed(weave: Weave, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, Any]:
    """Return the seconds of ``TURNS`` turns in which prompts of all skills are answered, by two ways that take turns.

    ``weave``: one batch of all prompts, each with the pack of its skill; a pack that cannot share a batch has one of
    its own. ``separate``: a model for each skill, one after the other. A fine-tune takes as long as the base, so the
    base alone stands for each of these models.

    ``prompts`` maps the loaded packs to prompts, of which the first ``PER_SKILL`` are used. Both ways write exactly
    ``NEW_TOKENS`` tokens for each prompt, greedily; end tokens are ignored. One turn before the first is not counted.
    """
    ids = {
        name: [prompt_ids(weave.base.tokenizer, prompt)[-LONGEST_PROMPT:] for prompt in own[:PER_SKILL]]
        for name, own in prompts.items()
    }
    batches: dict[str | None, list[tuple[str, list[int]]]] = {}  # the key of the shared batch is None
    for name, rows in ids.items():
        own = name if weave.packed_model.why_alone(name) else None
        batches.setdefault(own, []).extend((name, row) for row in rows)

    def in_the_weave() -> None:
        for batch in batches.values():
            _decode(weave, [row for _, row in batch], [name for name, _ in batch])

    def one_after_another() -> None:
        for rows in ids.values():
            _decode(weave, rows)

    ways: dict[str, Callable[[], None]] = {"weave": in_the_weave, "separate": one_after_another}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with bar("  answering in turns", len(ways) * (TURNS + 1)) as advance:
        for turn in range(TURNS + 1):
            for way, run in ways.items():
                began = time.perf_counter()
                run()
                if turn:  # the first turn warms caches up
                    seconds[way].append(round(time.perf_counter() - began, 4))
                advance()
    return {"prompts": sum(map(len, ids.values())), "new_tokens": NEW_TOKENS, "seconds": seconds}


def speed_note(speed: Mapping[str, Any], skills: int) -> str:
    """Return one sentence that compares both ways of :func:`compare_speed`."""
    seconds = speed["seconds"]
    ratios = [slow / fast for slow, fast in zip(seconds["separate"], seconds["weave"], strict=True)]
    rate = speed["prompts"] * speed["new_tokens"] / statistics.median(seconds["weave"])
    separate = f"{skills} separate models one after another" if skills > 1 else "a separate model"
    return (
        f"{speed['prompts']} prompts in one batch: {rate:.0f} tokens/s, {statistics.median(ratios):.2f}x the speed of "
        f"{separate} ({min(ratios):.2f}x to {max(ratios):.2f}x in {len(ratios)} turns)."
    )


def _decode(weave: Weave, rows: Sequence[Sequence[int]], packs: Sequence[str] | None = None) -> None:
    model = weave.base.model
    batch = pad_left(rows, weave.base.tokenizer.pad_token_id, model.device)
    with contextlib.nullcontext() if packs is None else weave.packed_model.rows(packs):
        decode_exactly(model, batch, NEW_TOKENS)


@torch.no_grad()
def decode_exactly(model: Any, batch: Batch, tokens: int) -> None:
    """Decode exactly ``tokens`` new tokens for each row, greedily; return when the device is done."""
    ids, mask = batch
    out = model.generate(
        input_ids=ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False
    ).cpu()
    if out.shape != (ids.shape[0], ids.shape[1] + tokens):
        raise RuntimeError(f"decoded {out.shape[1] - ids.shape[1]} tokens instead of {tokens}")
