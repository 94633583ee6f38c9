"""Tokens per second on a mixed stream, and bytes on disk and in memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.headline.lab import Lab, opened
from benchmarks.headline.scale import TEST
from skillweave.base import Prompt, Sampling
from skillweave.engine import AsyncEngine
from skillweave.weave import AUTO, Weave

TURNS = 3
EACH = 8
"""Prompts of each skill in the stream."""


def speed(own: Lab, rate: float) -> dict[str, Any]:
    """Return tokens per second of each way to serve the skills (one value a turn), and its bytes.

    The prompts of all skills come at once, in turn, and share the engine's steps. All ways write at most as many tokens
    to each prompt as the weave wrote to it. Ways take turns; one turn before the first is not counted. A merge and the
    multi-task model cost what the base costs.
    """
    scale = own.scale
    by_skill = {skill: scale.asked(skill, own.seed, TEST)[:EACH] for skill in scale.skills}
    each_turn = zip(*by_skill.values(), strict=True)
    mixed = [(question.prompt, question.skills[0]) for turn in each_turn for question in turn]
    prompts, names = [prompt for prompt, _ in mixed], [skill for _, skill in mixed]
    weave = own.weave(rate)
    longest = asyncio.run(_run(weave, prompts, names, [scale.tokens] * len(prompts)))[0]
    one = Weave.of(own.base)
    ways: dict[str, tuple[Weave, Sequence[str | None]]] = {
        "weave, named": (weave, names),
        "weave, routed": (weave, [AUTO] * len(prompts)),
        "one model": (one, [None] * len(prompts)),
    }
    twice = scale.twice(own.folder.parent)
    big = Weave.of(opened(twice))
    ways["monolith"] = (big, [None] * len(prompts))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(TURNS + 1):
        for way, (which, packs) in ways.items():
            written, seconds = asyncio.run(_run(which, prompts, packs, longest))
            if turn:  # the first one warms caches up
                rates[way].append(round(sum(written) / seconds, 1))
    return {"rates": {way: statistics.median(found) for way, found in rates.items()}, "all_rates": rates} | {
        "bytes": _bytes(own, rate, weave, one, big)
    }


async def _run(
    weave: Weave, prompts: Sequence[Prompt], packs: Sequence[str | None], longest: Sequence[int]
) -> tuple[list[int], float]:
    """Return the tokens of each answer, and the seconds of all."""
    async with AsyncEngine(weave) as engine:
        began = time.perf_counter()
        waiting = [
            engine.submit(prompt, pack, Sampling(max_new_tokens=tokens))
            for prompt, pack, tokens in zip(prompts, packs, longest, strict=True)
        ]
        given = await asyncio.gather(*(each.reply() for each in waiting))
        seconds = time.perf_counter() - began
    return [reply.completion_tokens for reply in given], seconds


def _bytes(own: Lab, rate: float, weave: Weave, one: Weave, big: Weave) -> dict[str, dict[str, int]]:
    """Return the bytes of each way: weights are in float32 in memory, and count as bf16 on disk."""
    deltas = [own.specialist(skill, rate).bf16_nbytes for skill in own.scale.skills]
    base, monolith = one.base_bytes, big.base_bytes
    packs = _folder_bytes(own.folder / f"weave-{len(own.scale.skills)}")
    return {
        "memory": {
            "weave": weave.needed_bytes,
            "one model": base,
            "specialists": base * len(deltas),
            "monolith": monolith,
        },
        "disk": {
            "weave": base // 2 + packs,
            "one model": base // 2,
            "specialists": base // 2 + sum(deltas),
            "monolith": monolith // 2,
        },
    }


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
