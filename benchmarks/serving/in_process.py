"""Two other ways to serve several fine-tunes, in this process: one full model at a time, and PEFT's mixed batches.

Neither has a server, so neither pays for one. Requests come and wait as they do at a server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import StoppingCriteria, StoppingCriteriaList

from skillweave.base import Base, Sampling
from skillweave.base.batching import pad_left
from skillweave.base.generate import encode_prompts
from skillweave.base.voice import Voice, padding_id
from skillweave.engine import AsyncEngine
from skillweave.serve.load import PlannedRequest, RequestTiming
from skillweave.weave import Weave


@dataclass(eq=False)
class Waiting:
    """A request that waits, or runs."""

    request: PlannedRequest
    since: float
    future: asyncio.Future[RequestTiming]


async def under_load(
    requests: Sequence[PlannedRequest], concurrency: int, answer: Callable[[list[Waiting]], Awaitable[None]]
) -> tuple[list[RequestTiming], float]:
    """Keep ``concurrency`` requests waiting or running; return how each went, and the seconds of all.

    ``answer`` takes the requests that wait, answers some of them, and removes these from the list.
    """
    loop, left = asyncio.get_running_loop(), iter(requests)
    queue: list[Waiting] = []
    timings: list[RequestTiming] = []
    began = time.perf_counter()

    async def caller() -> None:
        for request in left:
            one = Waiting(request, time.perf_counter(), loop.create_future())
            queue.append(one)
            timings.append(await one.future)

    callers = [asyncio.create_task(caller()) for _ in range(concurrency)]
    while not all(task.done() for task in callers):
        await asyncio.sleep(0)
        if queue:
            await answer(queue)
    return timings, time.perf_counter() - began


class FullModels:
    """Full fine-tunes on disk, of which one is in memory. All that wait for the same model share its steps.

    The next model is that of the request that waits longest; its weights are read from a file in the page cache.
    """

    def __init__(self, base: Base, files: dict[str, Path]) -> None:
        self._base, self._files = base, files
        self._loaded: str | None = None
        self.loads = 0

    async def run(
        self, requests: Sequence[PlannedRequest], concurrency: int, max_tokens: int
    ) -> tuple[list[RequestTiming], float]:
        """Answer requests with the models that they name."""
        async with AsyncEngine(Weave.of(self._base)) as engine:

            async def answer(queue: list[Waiting]) -> None:
                name = queue[0].request.model
                if name != self._loaded:
                    await engine.between_steps(lambda: self._load(name))
                taken = [one for one in queue if one.request.model == name]
                for one in taken:
                    queue.remove(one)
                await asyncio.gather(*(_ask(engine, one, max_tokens) for one in taken))

            return await under_load(requests, concurrency, answer)

    @torch.no_grad()
    def _load(self, name: str) -> None:
        own = dict(self._base.model.named_parameters())
        for key, tensor in load_file(self._files[name]).items():
            own[key].copy_(tensor)
        self._loaded = name
        self.loads += 1


async def _ask(engine: AsyncEngine, one: Waiting, max_tokens: int) -> None:
    first = None
    generation = engine.submit(one.request.prompt, None, Sampling(max_tokens))
    async for chunk in generation.chunks():
        if first is None and chunk.tokens:
            first = time.perf_counter() - one.since
    reply = await generation.reply()
    total = time.perf_counter() - one.since
    one.future.set_result(
        RequestTiming(one.request.model, "ok", total, first, None, reply.prompt_tokens, reply.completion_tokens)
    )


class PeftBatches:
    """PEFT's model with adapters. All that wait form a static batch, in which each row names its adapter."""

    def __init__(self, model: Any, base: Base) -> None:
        self._model, self._base = model, base

    async def run(
        self, requests: Sequence[PlannedRequest], concurrency: int, max_tokens: int
    ) -> tuple[list[RequestTiming], float]:
        """Answer requests with the adapters that they name; ``base`` is no adapter."""

        async def answer(queue: list[Waiting]) -> None:
            taken, queue[:] = list(queue), []
            self._answer(taken, max_tokens)
            await asyncio.sleep(0)

        return await under_load(requests, concurrency, answer)

    @torch.no_grad()
    def _answer(self, taken: list[Waiting], max_tokens: int) -> None:
        base = self._base
        voice = Voice(base.tokenizer)
        prompts = encode_prompts(
            base.model, base.tokenizer, [one.request.prompt for one in taken], [voice] * len(taken)
        )
        pad = padding_id(base.model, base.tokenizer)
        ids, mask = pad_left(prompts, pad, base.model.device)
        watch = _Watch(set(voice.stops(base.model)))
        self._model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad,
            adapter_names=["__base__" if one.request.model == "base" else one.request.model for one in taken],
            stopping_criteria=StoppingCriteriaList([watch]),
        )  # fmt: skip
        ended = time.perf_counter()
        for row, one in enumerate(taken):
            one.future.set_result(
                RequestTiming(
                    one.request.model,
                    "ok",
                    ended - one.since,
                    watch.first - one.since,
                    None,
                    len(prompts[row]),
                    watch.tokens[row],
                )
            )


class _Watch(StoppingCriteria):
    """Notes when the first token is there, and counts the tokens of each row up to its end."""

    def __init__(self, stops: set[int]) -> None:
        self.first = 0.0
        self.tokens: list[int] = []
        self._stops = stops
        self._ended: list[bool] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        last = input_ids[:, -1].tolist()
        if not self.tokens:
            self.first = time.perf_counter()
            self.tokens, self._ended = [0] * len(last), [False] * len(last)
        for row, token in enumerate(last):
            if not self._ended[row]:
                self.tokens[row] += 1
                self._ended[row] = token in self._stops
        return torch.tensor(self._ended, device=input_ids.device)
