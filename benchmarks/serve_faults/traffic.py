"""Requests whose right answers are known, and a count of how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks.serve_faults.served import TOKENS, Served, ServerProcess, headers

_PATIENCE = 120.0
"""Seconds after which a request without an end counts as lost."""


@dataclass
class Tally:
    """How requests ended.

    - ``right``: answered in full, with the reference's answer; ``wrong``: with another answer
    - ``refused``: by status, with an error in the shape of the API
    - ``broken``: the connection broke before the end, and the client can tell
    - ``lost``: everything else: no end, an error in another shape, a status that says that the server failed
    """

    right: int = 0
    wrong: int = 0
    broken: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """All requests."""
        return self.right + self.wrong + self.broken + self.refused.total() + len(self.lost)

    def add(self, other: Tally) -> None:
        """Add the counts of another one."""
        self.right += other.right
        self.wrong += other.wrong
        self.broken += other.broken
        self.refused += other.refused
        self.lost += other.lost


@contextlib.asynccontextmanager
async def client_of(server: ServerProcess) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that opens as many connections as it needs."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx2.AsyncClient(
        base_url=server.url, headers=headers(), timeout=_PATIENCE, limits=limits, trust_env=False
    ) as client:
        yield client


def body_of(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    """The body of a greedy request."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0, **more}


async def ask(
    client: httpx2.AsyncClient, served: Served, model: str, prompt: str, tally: Tally, *,
    stream: bool = False, reference: str | None = None,
) -> None:  # fmt: skip
    """Ask, and count how it ended. ``reference``: who answers, if it is not the model's own name."""
    try:
        if stream:
            async with client.stream("POST", "/v1/chat/completions", json=body_of(model, prompt, stream=True)) as got:
                status = got.status_code
                text = await _streamed(got) if status == 200 else (await got.aread()).decode()
        else:
            got = await client.post("/v1/chat/completions", json=body_of(model, prompt))
            status, text = got.status_code, got.text
            if status == 200:
                text = got.json()["choices"][0]["message"]["content"]
    except (httpx2.TimeoutException, ValueError, KeyError) as error:
        tally.lost.append(f"{model}: {type(error).__name__}: {error}")
        return
    except httpx2.TransportError:
        tally.broken += 1
        return
    if status == 200:
        if text is None:
            tally.broken += 1
        elif text == served.answers[reference or model, prompt]:
            tally.right += 1
        else:
            tally.wrong += 1
    else:
        note_refusal(status, text, tally)


async def _streamed(response: httpx2.Response) -> str | None:
    """The text of a stream, or None if it ended with an error event. Raises ``ValueError`` if it has no end."""
    text, reason = "", None
    async for line in response.aiter_lines():
        if line == "data: [DONE]" and reason is not None:
            return text
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                return None
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
    raise ValueError("a stream ended without its end")


def note_refusal(status: int, text: str, tally: Tally) -> None:
    """Count a response that is no answer: as refused if it says so in the API's shape, else as lost."""
    try:
        told = bool(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        told = False
    if told and status != 500:
        tally.refused[status] += 1
    else:
        tally.lost.append(f"status {status}: {text[:200]}")


class Background:
    """Callers that ask the packs and the base without a pause while something else happens."""

    def __init__(
        self, client: httpx2.AsyncClient, served: Served, models: Sequence[str], callers: int, seed: int
    ) -> None:
        self.tally = Tally()
        self._client, self._served, self._models = client, served, models
        self._callers, self._seed = callers, seed
        self._stopped = False

    async def __aenter__(self) -> Background:
        self._tasks = [
            asyncio.create_task(self._call(random.Random(f"{self._seed} {n}"))) for n in range(self._callers)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _call(self, draw: random.Random) -> None:
        while not self._stopped:
            model, prompt = draw.choice(self._models), draw.choice(self._served.prompts)
            before = self.tally.broken
            await ask(self._client, self._served, model, prompt, self.tally, stream=draw.random() < 0.5)
            if self.tally.broken > before:
                await asyncio.sleep(0.2)  # the server is away


async def closed_loop(
    client: httpx2.AsyncClient, served: Served, models: Sequence[str], count: int, callers: int, seed: int
) -> tuple[Tally, float]:
    """Ask ``count`` times by callers that wait for their answers. Return how they ended, and the requests a second."""
    draw, tally = random.Random(seed), Tally()
    left = iter([(draw.choice(models), draw.choice(served.prompts), draw.random() < 0.5) for _ in range(count)])

    async def caller() -> None:
        for model, prompt, stream in left:
            await ask(client, served, model, prompt, tally, stream=stream)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return tally, count / (time.perf_counter() - began)


async def open_loop(
    client: httpx2.AsyncClient, served: Served, models: Sequence[str], count: int, rate: float, seed: int
) -> Tally:
    """Ask ``count`` times at a rate (a second), at random moments, without waiting for answers."""
    draw, tally = random.Random(seed), Tally()
    began, at = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            model, prompt, stream = draw.choice(models), draw.choice(served.prompts), draw.random() < 0.5
            group.create_task(ask(client, served, model, prompt, tally, stream=stream))
            at += draw.expovariate(rate)
    return tally
