"""A server that speaks the part of vLLM's API that the engine uses, writes fixed tokens, and fails as it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from skillweave.engine.vllm.folder import BASE_NAME


@dataclass
class FakeVllm:
    """What the server does, and what it was asked.

    - ``answer``: the token ids of every answer; it ends with the request's first stop token if there is room
    - ``delay``: seconds before each token
    - ``dies_after``: the connection breaks after so many tokens; None: never
    - ``status``: the status of every completion
    - ``acts``: whether adapters change log-probabilities
    """

    answer: list[int]
    delay: float = 0.0
    dies_after: int | None = None
    status: int = 200
    acts: bool = True
    may_load: bool = True
    adapters: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    loaded: list[dict[str, Any]] = field(default_factory=list)
    given_up: int = 0
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/health")
        def health() -> Response:
            return Response()

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            base = {"id": BASE_NAME, "parent": None, "max_model_len": 64}
            return {"data": [base, *({"id": name, "parent": BASE_NAME} for name in self.adapters)]}

        @app.post("/v1/load_lora_adapter")
        async def load(request: Request) -> Response:
            body = await request.json()
            if not self.may_load:
                return JSONResponse({"detail": "Not Found"}, 404)
            self.loaded.append(body)
            self.adapters.append(body["lora_name"])
            return PlainTextResponse("Success")

        @app.post("/v1/completions")
        async def complete(request: Request) -> Response:
            body = await request.json()
            if body["model"] not in (BASE_NAME, *self.adapters):
                return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
            if "prompt_logprobs" in body:
                moved = 0.5 if self.acts and body["model"] != BASE_NAME else 0.0
                logprobs = [None, *({str(token): {"logprob": -1.0 - moved}} for token in body["prompt"][1:])]
                return JSONResponse({"choices": [{"prompt_logprobs": logprobs}]})
            self.bodies.append(body)
            if self.status != 200:
                return JSONResponse({"error": {"message": "told to fail"}}, self.status)
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        return app

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        tokens = [*self.answer, body["stop_token_ids"][0]][: body["max_tokens"]]
        finished = False
        try:
            for at, token in enumerate(tokens):
                await asyncio.sleep(self.delay)
                if at == self.dies_after:
                    raise RuntimeError("told to die")
                last = at + 1 == len(tokens)
                finish = None if not last else "stop" if token in body["stop_token_ids"] else "length"
                logprobs = None
                if body["logprobs"] is not None:
                    top = {"token_id:5": -2.0, f"token_id:{token}": -0.5}
                    logprobs = {"token_logprobs": [-0.5], "top_logprobs": [top]}
                choice = {"token_ids": [token], "finish_reason": finish, "logprobs": logprobs}
                finished = last
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.given_up += not finished


@contextmanager
def serving(*fakes: FakeVllm) -> Iterator[list[FakeVllm]]:
    """Run each server on a port of its own, and set its ``url``."""
    servers, threads = [], []
    for fake in fakes:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(fake.app(), log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        servers.append(server)
        threads.append(thread)
    until = time.monotonic() + 20
    while not all(server.started for server in servers):
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield list(fakes)
    finally:
        for server in servers:
            server.should_exit = True
        for thread in threads:
            thread.join(20)
