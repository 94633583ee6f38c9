"""Run an application on a port of this machine, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn
from fastapi import FastAPI

from skillweave.serve.run import bind, http_config, url_of
from skillweave.serve.settings import ServeConfig


@contextmanager
def live(app: FastAPI) -> Iterator[str]:
    """The address of a running application of `create_app`, without a path. Its port is any free one."""
    settings: ServeConfig = app.state.settings
    bound = bind(settings.model_copy(update={"port": 0}), None)
    url = url_of(bound)
    server = uvicorn.Server(http_config(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
    thread.start()
    try:
        for _ in range(500):
            try:
                if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.02)
        yield url
    finally:
        server.should_exit = True
        thread.join(10)
