"""Serve the demo's weave with `skillweave serve`, and ask it with the client of OpenAI: three packs and the router."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openai import AsyncOpenAI

from skillweave.demo.run import demo_config
from skillweave.errors import UserError
from skillweave.serve.child import child_server, free_port
from skillweave.tasks import Entry, Task, load_task
from skillweave.weave import AUTO

_Question = tuple[str, Task, Entry]
"""The name of the model that is asked, and the test prompt with its task."""


@dataclass(frozen=True)
class ServedAnswer:
    """What the server was asked, and what it answered. ``pack`` answered; ``confidence`` is the router's, if asked.

    ``score`` is the verifier's, in [0, 1].
    """

    model: str
    prompt: str
    answer: str
    pack: str
    confidence: float | None
    seconds: float
    score: float


def served_answers(folder: Path, overrides: Sequence[str] = ()) -> list[ServedAnswer]:
    """Start a server of the weave on a free port, ask each pack and the router at once, and stop the server.

    Each skill's pack and the router get a prompt of its test split. Raises :class:`UserError` if the server fails.
    """
    config = demo_config(overrides)
    asked: list[_Question] = []
    for name, skill in config.skills.items():
        task = load_task(skill.task)
        asked += [(model, task, entry) for model, entry in zip((name, AUTO), task.split("test"), strict=False)]
    with _server(folder) as url:
        return asyncio.run(_ask(url, asked, config.score.max_new_tokens))


async def _ask(url: str, asked: Sequence[_Question], max_tokens: int) -> list[ServedAnswer]:
    async def one(client: AsyncOpenAI, model: str, task: Task, entry: Entry) -> ServedAnswer:
        began, prompt = time.perf_counter(), str(entry.prompt)
        response = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0
        )
        seconds = time.perf_counter() - began
        route, answer = (response.model_extra or {})["skillweave"], response.choices[0].message.content or ""
        return ServedAnswer(
            model, prompt, answer, route["pack"], route["confidence"], seconds, task.score(answer, entry)
        )

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="not needed on this machine", max_retries=0) as client:
        return list(await asyncio.gather(*(one(client, *question) for question in asked)))


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Run `skillweave serve` in a process of its own, and yield its URL when it takes requests."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "skillweave", "serve", str(folder), "--port", str(port)]
    with child_server(command, f"{url}/ready") as child:
        yield url
    if child.returncode != 0:
        raise UserError(f"the server did not stop as it should: it ended with status {child.returncode}")
