"""A real HTTP server with a scripted engine, and the official client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from helpers.fake_engine import FakeEngine, FakeService
from skillweave.micro import micro_tokenizer
from skillweave.serve.errors import add_error_handlers
from skillweave.serve.openai.routes import openai_router


@dataclass
class Served:
    """A running server, the parts behind it, and clients of it."""

    service: FakeService
    url: str
    client: openai.OpenAI
    raw: httpx2.Client

    @property
    def engine(self) -> FakeEngine:
        return self.service.engine

    def post(self, path: str, **body) -> httpx2.Response:
        return self.raw.post(f"/v1/{path}", json=body)


@pytest.fixture(scope="session")
def running() -> Iterator[Served]:
    """One server for all tests."""
    service = FakeService(FakeEngine(micro_tokenizer()))
    app = FastAPI()
    app.include_router(openai_router(service))
    add_error_handlers(app)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
    with httpx2.Client(base_url=url, timeout=20) as raw:
        yield Served(service, url, client, raw)
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    """The server as new: the plain micro tokenizer, and an engine that answers "Hello!"."""
    running.service.__init__(FakeEngine(micro_tokenizer()))  # type: ignore[misc]
    yield running
    end = time.monotonic() + 5  # a client may be done with its answer a moment before the server is
    while running.service.held and time.monotonic() < end:
        time.sleep(0.005)
