"""A load generator for any OpenAI-compatible server: it sends requests, times their streams and sums them up."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI

from skillweave.errors import UserError, nearest
from skillweave.progress import bar
from skillweave.serve.chat import explained

_WORDS = (
    "river stone paper green seven window carry listen market yellow simple garden number morning circle travel "
    "kitchen letter summer bridge answer silver follow island pencil corner winter animal basket doctor engine forest"
)
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class LoadPlan:
    """What is sent to the server.

    - ``mix``: model -> its share of the requests
    - ``rate``: requests a second; they arrive at random and do not wait for each other (a Poisson process)
    - ``concurrency``: requests that run at once, without ``rate``; each one that ends is followed by the next
    - ``prompts``: drawn at random; without them, prompts of ``prompt_words`` random words
    """

    mix: Mapping[str, float]
    requests: int = 64
    rate: float | None = None
    concurrency: int = 8
    prompts: Sequence[str] = ()
    prompt_words: int = 32
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 300.0


@dataclass(frozen=True)
class PlannedRequest:
    """One request: its model, its prompt, and the seconds after the beginning at which it is sent."""

    model: str
    prompt: str
    at: float


@dataclass(frozen=True)
class RequestTiming:
    """How one request went; the times are seconds.

    - ``status``: ``ok``, a status code of HTTP, ``connection`` or ``broken`` (the stream ended with an error)
    - ``first``: from sending it to the first token; ``each``: the mean time of every further token
    - ``counted``: whether the server told the number of tokens; otherwise the pieces of the stream are counted
    """

    model: str
    status: str
    total: float
    first: float | None = None
    each: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True


async def measure(url: str, key: str, plan: LoadPlan) -> dict[str, Any]:
    """Send the requests of a plan to a server, with a progress bar. Return the plan, the figures and every request.

    An empty mix means all models of the server. Raises :class:`UserError` if the server cannot be asked.
    """
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=plan.timeout) as client:
        plan = replace(plan, mix=checked_mix(plan.mix, await server_models(client)))
        failed = 0
        with bar("requests", plan.requests) as advance:

            def note(timing: RequestTiming) -> None:
                nonlocal failed
                failed += timing.status != "ok"
                advance(note=f"{failed} failed" if failed else "")

            timings, seconds = await run_load(client, plan, note)
    settings = {name: value for name, value in asdict(plan).items() if name != "prompts"}
    return {
        "url": url,
        "plan": {**settings, "prompts": len(plan.prompts)},
        "figures": load_summary(timings, seconds),
        "requests": [asdict(timing) for timing in timings],
    }


def planned_requests(plan: LoadPlan) -> list[PlannedRequest]:
    """Return the requests of a plan; the same seed gives the same ones."""
    draw, words = random.Random(plan.seed), _WORDS.split()
    models = draw.choices(list(plan.mix), list(plan.mix.values()), k=plan.requests)
    at, requests = 0.0, []
    for model in models:
        prompt = draw.choice(plan.prompts) if plan.prompts else " ".join(draw.choices(words, k=plan.prompt_words))
        requests.append(PlannedRequest(model, prompt, at))
        if plan.rate is not None:
            at += draw.expovariate(plan.rate)
    return requests


async def server_models(client: AsyncOpenAI) -> list[str]:
    """Return the names of a server's models. Raises :class:`UserError` if no server answers."""
    try:
        return [model.id for model in (await client.models.list()).data]
    except APIError as error:
        raise UserError(explained(error, str(client.base_url))) from error


def checked_mix(mix: Mapping[str, float], models: Sequence[str]) -> dict[str, float]:
    """Return the shares of the models; without a mix, all are equal. Raises :class:`UserError` for an unknown one."""
    if not mix and not models:
        raise UserError("the server lists no model: name one with --mix NAME=1")
    if not mix:
        return dict.fromkeys(models, 1.0)
    for name, share in mix.items():
        if models and name not in models:
            raise UserError(f"--mix: the server has no model '{name}'; {nearest(name, models)}")
        if not 0 < share < float("inf"):
            raise UserError(f"--mix: the share of '{name}' is {share:g}: expected a number above 0")
    return dict(mix)


async def run_load(
    client: AsyncOpenAI, plan: LoadPlan, advance: Callable[[RequestTiming], None]
) -> tuple[list[RequestTiming], float]:
    """Send the requests of a plan. Return how each went, and the seconds from the first to the last.

    ``advance`` is called after each request. The client must not retry.
    """
    timings: list[RequestTiming] = []
    began = time.perf_counter()

    async def send(request: PlannedRequest) -> None:
        timing = await timed_request(client, request, plan)
        timings.append(timing)
        advance(timing)

    requests = planned_requests(plan)
    if plan.rate is not None:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(began + request.at - time.perf_counter())
                group.create_task(send(request))
    else:
        waiting = iter(requests)

        async def worker() -> None:
            for request in waiting:
                await send(request)

        async with asyncio.TaskGroup() as group:
            for _ in range(plan.concurrency):
                group.create_task(worker())
    return timings, time.perf_counter() - began


async def timed_request(client: AsyncOpenAI, request: PlannedRequest, plan: LoadPlan) -> RequestTiming:
    """Send one request and read its stream. An error is a part of the result."""
    began = time.perf_counter()
    arrived: list[float] = []
    prompt_tokens = completion_tokens = 0
    counted = False
    status = "ok"
    try:
        stream = await client.chat.completions.create(
            model=request.model,
            messages=[{"role": "user", "content": request.prompt}],
            max_tokens=plan.max_tokens,
            temperature=plan.temperature,
            stream=True,
            stream_options={"include_usage": True},
            timeout=plan.timeout,
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                arrived.append(time.perf_counter())
            if chunk.usage is not None:
                counted = True
                prompt_tokens, completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
    except APIStatusError as error:
        status = str(error.status_code)
    except APIConnectionError:
        status = "connection"
    except APIError:
        status = "broken"
    ended = time.perf_counter()
    tokens = completion_tokens if counted else len(arrived)
    # The pieces of a stream may hold several tokens each, so the time is shared out over the tokens.
    each = (arrived[-1] - arrived[0]) / (tokens - 1) if len(arrived) > 1 and tokens > 1 else None
    return RequestTiming(
        request.model,
        status,
        ended - began,
        arrived[0] - began if arrived else None,
        each,
        prompt_tokens,
        tokens,
        counted or status != "ok",
    )


def load_summary(timings: Sequence[RequestTiming], seconds: float) -> dict[str, Any]:
    """Return the figures of a load: percentiles of the answered requests, throughput, and errors by status."""
    well = [timing for timing in timings if timing.status == "ok"]
    return {
        "requests": len(timings),
        "answered": len(well),
        "errors": dict(sorted(Counter(timing.status for timing in timings if timing.status != "ok").items())),
        "seconds": seconds,
        "requests_per_second": len(well) / seconds if seconds else 0.0,
        "tokens_per_second": sum(timing.completion_tokens for timing in well) / seconds if seconds else 0.0,
        "prompt_tokens": sum(timing.prompt_tokens for timing in well),
        "completion_tokens": sum(timing.completion_tokens for timing in well),
        "uncounted": sum(not timing.counted for timing in well),
        "first_token_seconds": percentiles([timing.first for timing in well if timing.first is not None]),
        "token_seconds": percentiles([timing.each for timing in well if timing.each is not None]),
        "total_seconds": percentiles([timing.total for timing in well]),
        "models": dict(sorted(Counter(timing.model for timing in timings).items())),
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return the percentiles p50, p95 and p99 of some values, between them by linear interpolation; None for none."""
    if not values:
        return None
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
